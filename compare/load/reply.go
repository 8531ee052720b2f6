package load

import (
	"bytes"
	"errors"
	"fmt"
)

// maxLine is the longest line that a server may answer.
const maxLine = 2048

// maxReply is the largest value that is taken in to be judged; a server that
// announces more is not understood.
const maxReply = 4 << 20

var (
	errNotUnderstood = errors.New("the reply is not memcached's")
	errUnasked       = errors.New("a reply to nothing that was asked")
)

var (
	value       = []byte("VALUE ")
	end         = []byte("END\r\n")
	valueEnd    = []byte("\r\nEND\r\n")
	stored      = []byte("STORED\r\n")
	serverError = []byte("SERVER_ERROR ")
	clientError = []byte("CLIENT_ERROR ")
	otherError  = []byte("ERROR\r\n")
	notStored   = []byte("NOT_STORED\r\n")
)

// input takes in what has arrived, valid only during the call, judges every
// reply in it, and sends what there is room for now. An error means that the
// stream makes no sense any more.
func (s *session) input(p []byte, now int64) error {
	b := p
	if len(s.in) > 0 {
		s.in = append(s.in, p...)
		b = s.in
	}
	used := 0
	for used < len(b) {
		n, err := s.reply(b[used:], now)
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		used += n
	}
	s.in = append(s.in[:0], b[used:]...)
	s.thread.lastReply = now
	s.issue(now)
	return nil
}

// reply judges one reply and returns its length, 0 if it is not all there.
func (s *session) reply(b []byte, now int64) (int, error) {
	i := bytes.IndexByte(b, '\n')
	if i < 0 {
		if len(b) > maxLine {
			return 0, errNotUnderstood
		}
		return 0, nil
	}
	line := b[:i+1]
	switch {
	case bytes.HasPrefix(line, value):
		return s.valueReply(b, i+1, now)
	case bytes.Equal(line, end):
		r, err := s.answered(false, nil)
		if err == nil {
			s.thread.count(r, now, miss)
		}
		return i + 1, err
	case bytes.Equal(line, stored):
		r, err := s.answered(true, nil)
		if err == nil {
			s.thread.count(r, now, hit)
		}
		return i + 1, err
	case bytes.HasPrefix(line, serverError), bytes.HasPrefix(line, clientError), bytes.Equal(line, otherError), bytes.Equal(line, notStored):
		if s.size == 0 {
			return 0, errUnasked
		}
		s.drop(1)
		s.thread.failed(1, fmt.Errorf("the server answered %q", bytes.TrimSpace(line)))
		return i + 1, nil
	}
	return 0, fmt.Errorf("%w: %.80q", errNotUnderstood, line)
}

// valueReply judges VALUE key flags bytes\r\ndata\r\nEND\r\n, of which the first
// line has the given length.
func (s *session) valueReply(b []byte, length int, now int64) (int, error) {
	line := bytes.TrimSuffix(b[len(value):length], crlf)
	key, rest := field(line)
	flags, rest := field(rest)
	bytesField, rest := field(rest)
	size, ok := number(bytesField)
	if !ok || len(rest) > 0 || size > maxReply {
		return 0, fmt.Errorf("%w: %.80q", errNotUnderstood, line)
	}
	all := length + size + len(valueEnd)
	if len(b) < all {
		return 0, nil
	}
	data := b[length : length+size]
	if !bytes.Equal(b[length+size:all], valueEnd) {
		return 0, fmt.Errorf("%w: the value of %.80q does not end where it should", errNotUnderstood, key)
	}
	r, err := s.answered(false, key)
	if err != nil {
		return 0, err
	}
	if err := s.judge(r.key, key, flags, data); err != nil {
		s.thread.wrong++
		s.thread.note(&s.thread.firstWrong, err)
	}
	s.thread.count(r, now, hit)
	return all, nil
}

// answered takes off the request that a reply belongs to. Replies come in the
// order of the requests; if the oldest is of the other kind, or asked for another
// key while a later one asked for this, the replies in between are missing.
func (s *session) answered(set bool, key []byte) (request, error) {
	if s.size == 0 {
		return request{}, errUnasked
	}
	if oldest := &s.pending[s.first]; oldest.set == set && (key == nil || s.isKey(oldest.key, key)) {
		r := *oldest
		s.drop(1)
		return r, nil
	}
	for i := 1; i < s.size; i++ {
		r := s.pending[(s.first+i)%len(s.pending)]
		if r.set == set && (key == nil || s.isKey(r.key, key)) {
			s.drop(i + 1)
			s.thread.failed(i, fmt.Errorf("no reply: the server answered a later request of the connection (%s)", s.describe(r)))
			return r, nil
		}
	}
	r := s.pending[s.first]
	if r.set != set {
		return request{}, fmt.Errorf("%w: %s was answered as if it were the other", errUnasked, s.describe(r))
	}
	s.drop(1)
	return r, nil // the wrong key, which judge tells
}

// drop takes off the n oldest requests.
func (s *session) drop(n int) {
	s.first = (s.first + n) % len(s.pending)
	s.size -= n
}

func (s *session) isKey(k int, key []byte) bool {
	t := s.thread
	t.scratch = t.plan.content.appendKey(t.scratch[:0], k)
	return bytes.Equal(t.scratch, key)
}

func (s *session) describe(r request) string {
	verb := "get"
	if r.set {
		verb = "set"
	}
	return fmt.Sprintf("%s %s", verb, s.thread.plan.content.appendKey(nil, r.key))
}

// judge says what is wrong with a value.
func (s *session) judge(k int, key, flags, data []byte) error {
	want := s.thread.plan.content.value(k)
	var problem error
	switch {
	case !s.isKey(k, key):
		problem = fmt.Errorf("the reply is for %.80q", key)
	case len(flags) != 1 || flags[0] != '0':
		problem = fmt.Errorf("the reply has flags %.20s, not 0", flags)
	case len(data) != len(want):
		problem = fmt.Errorf("the reply has %d bytes, not %d", len(data), len(want))
	case !bytes.Equal(data, want):
		problem = fmt.Errorf("the reply differs from what was stored at byte %d of %d", firstDifference(data, want), len(want))
	default:
		return nil
	}
	return fmt.Errorf("%s: %w", s.describe(request{key: k}), problem)
}
