// Command pollux is the one binary of the project: every subcommand is one file
// here that reads its flags and hands over to the package that does the work.
// Logs and errors go to standard error, results to standard output. The exit
// code is 0 if all went well, that of the command for lab exec, else 1.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first signal asks for an orderly end, a second one does not ask.
	context.AfterFunc(ctx, stop)
	err := newRootCommand().ExecuteContext(ctx)
	stop()
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "pollux:", err)
	code := 1
	var exit exitError
	if errors.As(err, &exit) {
		code = exit.code
	}
	os.Exit(code)
}

// untilHangUp ends with ctx, and in the same order when the terminal goes away: for
// commands that would leave a lab or a NIC behind. Shell and kernel both say so, which
// is no second demand: it is never one to end at once.
func untilHangUp(ctx context.Context) context.Context {
	if signal.Ignored(syscall.SIGHUP) {
		return ctx // started by nohup, to go on
	}
	ctx, cancel := context.WithCancel(ctx)
	hangUps := make(chan os.Signal, 1)
	signal.Notify(hangUps, syscall.SIGHUP)
	go func() {
		<-hangUps
		cancel()
	}()
	return ctx
}

// exitError is an error with an exit code of its own.
type exitError struct {
	error
	code int
}

func (e exitError) Unwrap() error { return e.error }
