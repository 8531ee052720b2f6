// Package pollux is the root of the project and holds no code: the one binary is
// apps/pollux, the library to begin with is runtime. README.md has the picture
// of the house, and layout_test.go holds it in shape.
package pollux
