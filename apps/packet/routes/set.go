package routes

import "maps"

// A set is what there is, and what was told of it. The zero value is empty.
type set[K, V comparable] struct {
	now, told map[K]V
	touched   map[K]struct{}
}

func (s *set[K, V]) put(k K, v V) {
	if s.now == nil {
		s.now = make(map[K]V)
	}
	s.now[k] = v
	s.touch(k)
}

func (s *set[K, V]) delete(k K) {
	delete(s.now, k)
	s.touch(k)
}

func (s *set[K, V]) touch(k K) {
	if s.touched == nil {
		s.touched = make(map[K]struct{})
	}
	s.touched[k] = struct{}{}
}

// become makes what there is now.
func (s *set[K, V]) become(now map[K]V) {
	for k := range s.now {
		s.touch(k)
	}
	for k := range now {
		s.touch(k)
	}
	s.now = maps.Clone(now)
}

// take returns what differs from what was told, which is told then; what is gone
// has the zero value.
func (s *set[K, V]) take() map[K]V {
	var changed map[K]V
	for k := range s.touched {
		now, is := s.now[k]
		told, was := s.told[k]
		if is == was && now == told {
			continue
		}
		if changed == nil {
			changed = make(map[K]V)
		}
		changed[k] = now
		if !is {
			delete(s.told, k)
			continue
		}
		if s.told == nil {
			s.told = make(map[K]V)
		}
		s.told[k] = now
	}
	clear(s.touched)
	return changed
}
