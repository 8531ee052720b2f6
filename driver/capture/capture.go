// Package capture wraps a driver.Queue, or all queues of a driver.Port, and
// writes the frames that pass to a pcapng file, in both directions, until a limit
// of bytes or frames is reached. Traffic never waits for more than the file, and
// goes on when the limit is reached or the file fails.
//
// Frames are written as they cross the interface between the stack and the
// driver. A frame whose checksum is left to the device therefore shows a wrong
// one (it holds the pseudo-header's sum), and one to be cut by the device (TSO)
// shows uncut. On receive, the same holds for peers that leave checksums out.
package capture

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
)

// Config says how much to write.
type Config struct {
	// Bytes is the largest size of the file; 0 is no limit.
	Bytes uint64
	// Packets is the largest number of frames written; 0 is no limit.
	Packets uint64
	// Snap is how many bytes of each frame are kept; 0 is all.
	Snap int
	// Now tells the time of a burst; it is called at most once per burst, under
	// a lock, by any queue's goroutine. Required: time.Now, or a test's own.
	Now func() time.Time
}

// statisticsSize is what the closing statistics of an interface take.
const statisticsSize = 52

// bufferSize is how much is gathered before the file is written.
const bufferSize = 256 << 10

// A Capture is one pcapng file, fed by any number of queues. Each queue has two
// interfaces in the file, "NAME queue N in" for what it received and "… out" for
// what it transmitted. (The file format's own mark of direction cannot be
// written with pcapgo.) Methods may be called from any goroutine.
type Capture struct {
	config Config
	// stopped is set once nothing more will be written.
	stopped atomic.Bool

	mu         sync.Mutex
	file       io.Writer
	closer     io.Closer
	written    uint64 // what file took
	buffer     *bufio.Writer
	pcapng     *pcapgo.NgWriter
	interfaces []*direction
	packets    uint64
	closed     bool
	err        error
}

// A direction is one interface in the file.
type direction struct {
	capture *Capture
	id      int
	// written and skipped count frames.
	written, skipped atomic.Uint64
}

// Create makes the file, or empties it, readable by its owner only.
func Create(path string, config Config) (*Capture, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create capture file: %w", err)
	}
	c, err := New(f, config)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	c.closer = f
	return c, nil
}

// New writes to w, which Close does not close.
func New(w io.Writer, config Config) (*Capture, error) {
	if config.Now == nil {
		return nil, errors.New("open capture: Config.Now is missing")
	}
	if config.Snap < 0 || config.Snap > math.MaxInt32 {
		return nil, fmt.Errorf("open capture: cannot keep %d bytes of each frame", config.Snap)
	}
	return &Capture{config: config, file: w}, nil
}

// Write implements io.Writer for the buffer; not for callers.
func (f *countingFile) Write(b []byte) (int, error) {
	n, err := f.file.Write(b)
	f.written += uint64(n)
	return n, err
}

// countingFile is a Capture as its buffer sees it.
type countingFile Capture

// direction adds an interface to the file.
func (c *Capture) direction(name string) (*direction, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, fmt.Errorf("capture %s: the capture is closed", name)
	}
	in := pcapgo.NgInterface{
		Name: name, LinkType: layers.LinkTypeEthernet, SnapLength: uint32(c.config.Snap), TimestampResolution: 9,
	}
	d := &direction{capture: c, id: len(c.interfaces)}
	if c.pcapng == nil {
		c.buffer = bufio.NewWriterSize((*countingFile)(c), bufferSize)
		var options pcapgo.NgWriterOptions
		options.SectionInfo.Application = "pollux"
		w, err := pcapgo.NewNgWriterInterface(c.buffer, in, options)
		if err != nil {
			return nil, fmt.Errorf("capture %s: write header: %w", name, err)
		}
		c.pcapng = w
	} else if id, err := c.pcapng.AddInterface(in); err != nil {
		return nil, fmt.Errorf("capture %s: write interface: %w", name, err)
	} else {
		d.id = id
	}
	c.interfaces = append(c.interfaces, d)
	if c.config.Bytes > 0 && c.size()+c.reserve() > c.config.Bytes {
		return nil, fmt.Errorf("capture %s: a limit of %d bytes does not even hold the file's header", name, c.config.Bytes)
	}
	return d, nil
}

// size is how long the file is once all is flushed.
func (c *Capture) size() uint64 { return c.written + uint64(c.buffer.Buffered()) }

// reserve is what Close will add.
func (c *Capture) reserve() uint64 { return statisticsSize * uint64(len(c.interfaces)) }

// write records frames of one burst; get returns the bytes of frame i.
func (d *direction) write(n int, get func(i int) []byte) {
	c := d.capture
	if c.stopped.Load() {
		d.skipped.Add(uint64(n))
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.config.Now()
	for i := range n {
		if c.stopped.Load() || !c.append(d, now, get(i)) {
			// One that does not fit ends the file: gaps would mislead.
			c.stopped.Store(true)
			d.skipped.Add(1)
			continue
		}
		d.written.Add(1)
	}
}

// append writes one frame, unless a limit or an error forbids.
func (c *Capture) append(d *direction, now time.Time, data []byte) bool {
	kept := data
	if c.config.Snap > 0 {
		kept = data[:min(len(data), c.config.Snap)]
	}
	size := 32 + uint64(len(kept)+3)&^3
	if c.config.Packets > 0 && c.packets == c.config.Packets {
		return false
	}
	if c.config.Bytes > 0 && c.size()+size+c.reserve() > c.config.Bytes {
		return false
	}
	c.packets++
	info := gopacket.CaptureInfo{Timestamp: now, CaptureLength: len(kept), Length: len(data), InterfaceIndex: d.id}
	if err := c.pcapng.WritePacket(info, kept); err != nil {
		c.err = fmt.Errorf("write capture: %w", err)
		return false
	}
	return true
}

// Counts returns how many frames were written, and how many were not because of
// a limit or an error of the file.
func (c *Capture) Counts() (written, skipped uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range c.interfaces {
		written += d.written.Load()
		skipped += d.skipped.Load()
	}
	return written, skipped
}

// Flush writes out what is buffered. The error may be of an earlier write.
func (c *Capture) Flush() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.flush()
}

func (c *Capture) flush() error {
	if c.err == nil && c.buffer != nil {
		if err := c.buffer.Flush(); err != nil {
			c.err = fmt.Errorf("flush capture: %w", err)
			c.stopped.Store(true)
		}
	}
	return c.err
}

// Close ends the file with the number of frames seen and not written. Traffic
// goes on through the queues, uncaptured. It may be called more than once.
func (c *Capture) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	c.stopped.Store(true)
	now := c.config.Now()
	for _, d := range c.interfaces {
		if c.err != nil {
			break
		}
		written, skipped := d.written.Load(), d.skipped.Load()
		if err := c.pcapng.WriteInterfaceStats(d.id, pcapgo.NgInterfaceStatistics{
			LastUpdate: now, PacketsReceived: written + skipped, PacketsDropped: skipped,
		}); err != nil {
			c.err = fmt.Errorf("write capture's statistics: %w", err)
		}
	}
	err := c.flush()
	if c.closer != nil {
		if e := c.closer.Close(); e != nil && err == nil {
			err = fmt.Errorf("close capture: %w", e)
		}
	}
	return err
}
