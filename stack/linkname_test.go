package stack

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/printer"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
	"unsafe"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// assumed is what linkname.go takes for granted of the pinned gVisor: for each
// package, the declarations as its source has them.
var assumed = map[string][]string{
	"pkg/tcpip/transport/tcp": {
		"func newSegment() *segment",
		"func (s *segment) ReadTo(dst io.Writer, peek bool) (int, error)",
		"func (s *segment) payloadSize() int",
		"func (s *segment) segMemSize() int",
		"func (s *segment) setOwner(ep *Endpoint, qFlags queueFlags)",
		"func (e *Endpoint) receiveMemUsed() int",
		"func (l *segmentList) PushBack(e *segment)",
		"func (l *segmentList) Remove(e *segment)",
		"func (e *Endpoint) windowCrossedACKThresholdLocked(deltaBefore int, rcvBufSize int) (crossed bool, above bool)",
		"func (r *receiver) nonZeroWindow()",
		// What newIncomingSegment and read do in its place.
		"func newIncomingSegment(id stack.TransportEndpointID, clock tcpip.Clock, pkt *stack.PacketBuffer) (*segment, error)",
		"func (e *Endpoint) Read(dst io.Writer, opts tcpip.ReadOptions) (tcpip.ReadResult, tcpip.Error)",
		"func (s *segment) DecRef()",
		"func (e *Endpoint) enqueueSegment(s *segment) bool",
		// What takeSegment and nextSegment do in their place.
		"func (q *segmentQueue) enqueue(s *segment) bool",
		"func (q *segmentQueue) dequeue() *segment",
		"func (q *epQueue) dequeue() *Endpoint",
		"func (e *Endpoint) handleSegmentLocked(s *segment) (cont bool, err tcpip.Error)",
		"func (e *Endpoint) handleSegmentsLocked() tcpip.Error",
		"func (e *Endpoint) queueSegment(p tcpip.Payloader, opts tcpip.WriteOptions) (*segment, int, tcpip.Error)",
		"func (e *Endpoint) sendData(next *segment)",
		"func (e *Endpoint) resetConnectionLocked(err tcpip.Error)",
		"func (e *Endpoint) drainClosingSegmentQueue()",
		"func handleConnecting(ep *Endpoint)",
		"func handleConnected(ep *Endpoint)",
		"func handleTimeWait(ep *Endpoint)",
		"func handleListen(ep *Endpoint)",
		"func startTimeWait(ep *Endpoint)",
		// Exported, but for tests only, so it may go any day: we unlock with it.
		"func (e *Endpoint) ResumeWork()",
		"func (e *Endpoint) TryLock() bool",
		// The goroutine whose work dispatch.go does, and what feeds it.
		"func (p *processor) start(wg *sync.WaitGroup)",
		"func (d *dispatcher) queuePacket(stackEP stack.TransportEndpoint, id stack.TransportEndpointID, clock tcpip.Clock, pkt *stack.PacketBuffer)",
		"func (d *dispatcher) selectProcessor(id stack.TransportEndpointID) *processor",
	},
	"pkg/tcpip/stack": {
		// What neighborAddress does in its place.
		"func (r *Route) getCachedNeighborEntry() *neighborEntry",
		"func (e *neighborEntry) getRemoteLinkAddress() (tcpip.LinkAddress, bool)",
	},
}

func TestThePinnedGVisorHasWhatTheLinknamesReach(t *testing.T) {
	for dir, wanted := range assumed {
		have := declarations(t, filepath.Join(gvisorSource(t), filepath.FromSlash(dir)))
		for _, w := range wanted {
			if !have[w] {
				t.Errorf("gvisor/%s no longer declares\n\t%s\nread what replaced it before changing stack/linkname.go", dir, w)
			}
		}
	}
}

func TestAReceivedSegmentsMemoryIsItsEndpoints(t *testing.T) {
	source, err := os.ReadFile(filepath.Join(gvisorSource(t), "pkg/tcpip/transport/tcp/segment.go"))
	if err != nil {
		t.Fatal(err)
	}
	// The second line of its block, so 1 << 1.
	if !strings.Contains(string(source), "IPv4MaximumHeaderSize\n\n\trecvQ queueFlags = 1 << iota\n\tsendQ\n") {
		t.Error("tcp.recvQ may no longer be what takeSegment says")
	}
}

func TestEveryLinknameIsChecked(t *testing.T) {
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, "linkname.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	var checked strings.Builder
	for dir, declarations := range assumed {
		for _, d := range declarations {
			checked.WriteString("gvisor.dev/gvisor/" + dir + " " + d + "\n")
		}
	}
	n := 0
	for _, group := range file.Comments {
		for _, c := range group.List {
			target, ok := strings.CutPrefix(c.Text, "//go:linkname ")
			if !ok {
				continue
			}
			n++
			// LOCAL PACKAGE.(*TYPE).NAME or LOCAL PACKAGE.NAME
			name := target[strings.LastIndex(target, ".")+1:]
			if !strings.Contains(checked.String(), " "+name+"(") && !strings.Contains(checked.String(), ") "+name+"(") {
				t.Errorf("%s is not in the list that is checked", target)
			}
		}
	}
	if n == 0 {
		t.Error("linkname.go has no linknames: this test looks in the wrong place")
	}
}

func TestFieldsReachedByOffsetHaveTheAssumedTypes(t *testing.T) {
	for _, f := range []struct {
		field reflect.StructField
		want  string
	}{
		{segmentQueueField, "tcp.segmentQueue"},
		{segmentsField, "tcp.segmentList"},
		{frozenField, "bool"},
		{firstField, "*tcp.segment"},
		{rcvQueueField, "tcp.segmentList"},
		{rcvBufUsedField, "int"},
		{rcvClosedField, "bool"},
		{waiterQueueField, "*waiter.Queue"},
		{routeField, "*stack.Route"},
		{senderField, "*tcp.sender"},
		{sndUnaField, "seqnum.Value"},
		{sndNxtField, "seqnum.Value"},
		{maxSentAckField, "seqnum.Value"},
		{receiverField, "*tcp.receiver"},
		{rcvNxtField, "seqnum.Value"},
		{rcvWndField, "seqnum.Size"},
		{rcvScaleField, "uint8"},
		{protocolField, "*tcp.protocol"},
		{dispatcherField, "tcp.dispatcher"},
		{processorsField, "[]tcp.processor"},
		{closedField, "bool"},
		{processorQueue, "tcp.epQueue"},
		{segmentIDField, "stack.TransportEndpointID"},
		{segmentPacketField, "*stack.PacketBuffer"},
		{segmentNumberField, "seqnum.Value"},
		{segmentAckField, "seqnum.Value"},
		{segmentFlagsField, "header.TCPFlags"},
		{segmentWindowField, "seqnum.Size"},
		{segmentValidField, "bool"},
		{segmentOptionsField, "[]uint8"},
		{segmentParsedField, "header.TCPOptions"},
		{segmentTimeField, "tcpip.MonotonicTime"},
		{segmentSizeField, "int"},
		{neighborField, "*stack.neighborEntry"},
		{lockedField, "stack.neighborEntryMu"},
		{entryField, "stack.NeighborEntry"},
	} {
		if got := f.field.Type.String(); got != f.want {
			t.Errorf("field %s is a %s, not a %s", f.field.Name, got, f.want)
		}
	}
}

func TestMonotonicTimeIsItsNanoseconds(t *testing.T) {
	var m tcpip.MonotonicTime
	if size := unsafe.Sizeof(m); size != 8 {
		t.Fatalf("tcpip.MonotonicTime has %d bytes: clock.NowMonotonic makes one from 8", size)
	}
	c := newClock()
	for _, d := range []time.Duration{0, 1, time.Second, 1000 * time.Hour} {
		c.advance(d)
		if got, want := c.NowMonotonic(), (tcpip.MonotonicTime{}).Add(d); got != want {
			t.Errorf("at %v the clock says %v, want %v", d, got, want)
		}
	}
}

// gvisorSource is the directory of the gVisor module that go.mod pins.
func gvisorSource(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "gvisor.dev/gvisor").Output()
	if err != nil {
		t.Fatalf("find the source of gVisor: %v", err)
	}
	return strings.TrimSpace(string(out))
}

// declarations prints the signatures of all functions of a package.
func declarations(t *testing.T, dir string) map[string]bool {
	t.Helper()
	fset := token.NewFileSet()
	names, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil || len(names) == 0 {
		t.Fatalf("no Go files in %s: %v", dir, err)
	}
	found := map[string]bool{}
	for _, name := range names {
		file, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			f.Body, f.Doc = nil, nil
			var b bytes.Buffer
			if err := printer.Fprint(&b, fset, f); err != nil {
				t.Fatal(err)
			}
			found[b.String()] = true
		}
	}
	return found
}
