//go:build race

package stack

// underRace scales down what would take minutes under the race detector.
const underRace = true
