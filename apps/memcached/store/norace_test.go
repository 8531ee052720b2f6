//go:build !race

package store

// underRace: the race detector is not at work.
const underRace = false
