package compare

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/pollux-net/pollux/compare/result"
)

// resultsName is the file in a run's directory.
const resultsName = "results.json"

// ReadResults reads what a run wrote; name is its file or its directory.
func ReadResults(name string) (result.Results, error) {
	if info, err := os.Stat(name); err == nil && info.IsDir() {
		name = filepath.Join(name, resultsName)
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return result.Results{}, fmt.Errorf("read results: %w", err)
	}
	var r result.Results
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("read results %s: %w", name, err)
	}
	if r.Schema != result.Schema {
		return r, fmt.Errorf("read results %s: its schema is %d, this program's is %d", name, r.Schema, result.Schema)
	}
	return r, nil
}

// writeResults replaces the file as a whole: whoever is interrupted leaves the
// one before.
func writeResults(dir string, r *result.Results) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	name := filepath.Join(dir, resultsName)
	if err := os.WriteFile(name+".new", append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	return nil
}

// resume finds what an interrupted run of the same plan has left. Rounds that do not
// count are done again. Its figures and those to come must be of one thing: the same
// programs on the same machine, placed alike.
func resume(dir string, plan result.Plan, seed uint64, machine result.Machine) (*result.Results, error) {
	r, err := ReadResults(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("nothing to resume: %w", err)
	}
	if err != nil {
		return nil, err
	}
	name := filepath.Join(dir, resultsName)
	if r.Plan.Placement != plan.Placement {
		return nil, fmt.Errorf("resume: in %s things were placed otherwise: %q, now %q; give the same processors, or another --out", name, r.Plan.Placement, plan.Placement)
	}
	have := r.Plan
	if len(plan.Fractions) > 0 {
		// What the fractions came to was added, and is again once it is known.
		have.Rates = have.Rates[:min(len(have.Rates), len(plan.Rates))]
	}
	if !equalPlans(have, plan) || r.Seed != seed {
		return nil, fmt.Errorf("resume: %s has another plan or seed; use the same flags, or another --out", name)
	}
	if apart := machinesApart(r.Machine, machine); len(apart) > 0 {
		return nil, fmt.Errorf("resume: %s is of another %s: figures of both in one table would not compare; begin anew with another --out", name, strings.Join(apart, ", another "))
	}
	r.Plan = plan
	for i := range r.Rows {
		r.Rows[i].Rounds = validRounds(&r.Rows[i])
		summarize(&r.Rows[i])
	}
	r.Complete = false
	return &r, nil
}

// machinesApart says in what two machines differ, and the programs on them.
func machinesApart(was, is result.Machine) (list []string) {
	differ := func(what, a, b string) {
		if a != b {
			list = append(list, fmt.Sprintf("%s (%s, now %s)", what, cmp.Or(a, "none"), cmp.Or(b, "none")))
		}
	}
	differ("kernel", was.Kernel, is.Kernel)
	differ("processor", was.CPU, is.CPU)
	names := make(map[string]string)
	maps.Copy(names, was.Versions)
	maps.Copy(names, is.Versions)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		differ(name, was.Versions[name], is.Versions[name])
	}
	return list
}

// equalPlans compares plans as they are written down.
func equalPlans(a, b result.Plan) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && slices.Equal(x, y) || reflect.DeepEqual(a, b)
}
