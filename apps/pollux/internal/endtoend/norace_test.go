//go:build !race

package endtoend

// raceEnabled says that the tests run with the race detector.
const raceEnabled = false
