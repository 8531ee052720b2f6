//go:build race

package store

// underRace: the race detector is at work.
const underRace = true
