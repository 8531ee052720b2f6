package routes

import (
	"context"
	"fmt"
	"slices"
	"syscall"
	"time"
)

// Config says what to follow.
type Config struct {
	// Interfaces are the indices of the links whose neighbours, addresses and
	// state are wanted; none means all. Routes come whatever link they use.
	Interfaces []int
	// ReceiveBuffer is the size in bytes of the socket's buffer for
	// notifications; 0 is 32 MiB, some 30,000 routes. What does not fit costs a
	// dump.
	ReceiveBuffer int
}

const (
	defaultReceiveBuffer = 32 << 20
	// settle is how long to wait for more once something changed: a daemon that
	// changes one route mostly changes others, too.
	settle = time.Millisecond
	// A dump that is not urgent waits so many times as long as the last one took,
	// so that dumps never take most of a core; at first doubtful ones are soon
	// followed by another, then ever more seldom.
	resyncPause    = 4
	resyncPauseMin = 20 * time.Millisecond
	doubtMin       = time.Second
	doubtMax       = time.Minute
)

// Follow calls deliver with everything that the kernel has, then with batches of
// what changed, until ctx ends (it returns ctx's error then), or the kernel
// cannot be asked. Calls come one after the other, from the calling goroutine.
// While deliver works, changes gather into the next batch, so a slow one gets
// fewer and larger batches and always ends at the newest state; routes that
// change and change back in between are not told at all. The Update is deliver's
// to keep.
//
// It follows the network namespace of the calling thread: outside the process's
// own, lock the goroutine to it.
func Follow(ctx context.Context, c Config, deliver func(Update)) error {
	f, err := newFollower(c)
	if err != nil {
		return err
	}
	defer f.close()
	return f.run(ctx, deliver)
}

type follower struct {
	inbox  *inbox
	dumper *dumper
	table  *table
	wanted func(link int) bool

	// resyncAt is when to list everything again, if not zero.
	resyncAt time.Time
	pause    time.Duration // after the last dump
	doubt    time.Duration // until a doubtful dump is followed by another
}

func newFollower(c Config) (*follower, error) {
	buffer := c.ReceiveBuffer
	if buffer == 0 {
		buffer = defaultReceiveBuffer
	}
	links := slices.Clone(c.Interfaces)
	f := &follower{table: newTable(), doubt: doubtMin, wanted: func(link int) bool {
		return len(links) == 0 || slices.Contains(links, link)
	}}
	var err error
	if f.dumper, err = openDumper(); err != nil {
		return nil, err
	}
	if f.inbox, err = openInbox(buffer); err != nil {
		f.dumper.close()
		return nil, err
	}
	return f, nil
}

func (f *follower) close() {
	f.inbox.close()
	f.dumper.close()
}

func (f *follower) run(ctx context.Context, deliver func(Update)) error {
	if err := f.resync(ctx); err != nil {
		return err
	}
	u := f.table.take(f.wanted)
	u.Resync = true
	deliver(*u)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		wait := time.Hour
		if !f.resyncAt.IsZero() {
			wait = time.Until(f.resyncAt)
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-f.inbox.ready:
			time.Sleep(settle)
		case <-timer.C:
		}
		overrun, err := f.apply()
		if err != nil {
			return err
		}
		resync := overrun || !f.resyncAt.IsZero() && !time.Now().Before(f.resyncAt)
		if resync {
			if err := f.resync(ctx); err != nil {
				return err
			}
		}
		if u := f.table.take(f.wanted); resync || !u.empty() {
			u.Resync = resync
			deliver(*u)
		}
	}
}

// apply applies the notifications that came. After an overrun those that were
// lost are missing, and the table is to be listed anew.
func (f *follower) apply() (overrun bool, err error) {
	messages, overrun, err := f.inbox.take()
	if err != nil {
		return overrun, err
	}
	for _, b := range messages {
		parsed, err := syscall.ParseNetlinkMessage(b)
		if err != nil {
			return overrun, fmt.Errorf("read a notification of the kernel: %w", err)
		}
		for _, m := range parsed {
			if err := f.table.message(m.Header.Type, m.Header.Flags, m.Data); err != nil {
				return overrun, err
			}
		}
	}
	if f.table.stale {
		f.table.stale = false
		if at := time.Now().Add(f.pause); f.resyncAt.IsZero() || at.Before(f.resyncAt) {
			f.resyncAt = at
		}
	}
	return overrun, nil
}

// resync lists everything and applies what was notified meanwhile on top; what
// differs from what was told is then to be told.
//
// Two things spoil a dump. Notifications lost while it goes on: it is taken
// again. And changes: the kernel lists a large table in pieces, and when it
// changes between two the IPv6 list may lack routes that were there all the time;
// also the order of IPv4 routes of one metric cannot always be told. So a dump
// with changes is repeated a few times, if it is one of IPv6, and then trusted,
// but another follows later.
func (f *follower) resync(ctx context.Context) error {
	const tries = 3
	told := f.table
	defer func() { f.table = told }()
	for try := 1; ; try++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		// What was notified before is in the dump.
		if _, _, err := f.inbox.take(); err != nil {
			return err
		}
		start := time.Now()
		fresh, err := f.dumper.dump()
		if err != nil {
			return err
		}
		f.pause = max(resyncPauseMin, resyncPause*time.Since(start))
		f.resyncAt = time.Time{}
		f.table = fresh
		overrun, err := f.apply()
		if err != nil {
			return err
		}
		if overrun || fresh.changes[1] > 0 && try < tries {
			continue
		}
		if fresh.changes == [2]int{} {
			f.doubt = doubtMin
		} else {
			if f.resyncAt.IsZero() {
				f.resyncAt = time.Now().Add(f.doubt)
			}
			f.doubt = min(2*f.doubt, doubtMax)
		}
		told.become(fresh)
		return nil
	}
}
