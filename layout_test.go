package pollux_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/pollux-net/pollux"

// A room is a directory of the house with all below it, unless a deeper
// directory is a room of its own.
type room struct {
	dir   string
	level int
	// uses are the rooms that it may import; "driver/..." is driver and the
	// rooms below it, "..." is all.
	uses []string
	// modules are the modules of others that it may import; "..." is any but
	// gVisor, which only rooms that name it may use.
	modules []string
	// never are packages that it must not import although the above allows
	// them (of the standard library, say).
	never []string
	// timeless rooms take time as an argument and must not read a clock, but
	// for the file named clock.
	timeless bool
	clock    string
	// c allows C, in files of its own and through cgo; source allows only the
	// files, which are compiled elsewhere.
	c, source bool
}

const (
	gvisor   = "gvisor.dev/gvisor"
	sys      = "golang.org/x/sys"
	gopacket = "github.com/google/gopacket"
)

// house is the table of the design: what each room may import. A test may also
// import any room of a lower level and any module: it must stand on something.
var house = []room{
	{dir: ".", level: 0},
	{dir: "bpf/trio", level: 0, modules: []string{
		"github.com/vishvananda/netlink", "github.com/vishvananda/netns", sys,
	}}, // a test network: only tests import it
	{dir: "driver", level: 1},
	{dir: "driver/wire", level: 2, uses: []string{"driver"}, timeless: true},
	{dir: "driver/dpdk", level: 3, uses: []string{"driver"}, modules: []string{sys}, c: true},
	{dir: "driver/capture", level: 3, uses: []string{"driver"}, modules: []string{gopacket}},
	{dir: "bpf", level: 1, modules: []string{"github.com/cilium/ebpf", sys}, source: true},
	{dir: "stack", level: 4, uses: []string{"driver"}, modules: []string{gvisor}, timeless: true,
		clock: "net_deadline.go"}, // net.Conn's deadlines are wall time by contract
	{dir: "runtime", level: 1},
	{dir: "runtime/affinity", level: 1, modules: []string{sys}},
	{dir: "runtime/user", level: 5, uses: []string{"runtime", "runtime/affinity", "stack", "driver"}, modules: []string{gvisor, sys}},
	{dir: "runtime/kernel", level: 5, uses: []string{"runtime", "runtime/affinity", "bpf"}, modules: []string{
		sys, "github.com/mdlayher/genetlink", "github.com/mdlayher/netlink", "github.com/vishvananda/netlink",
		"github.com/vishvananda/netns", "github.com/safchain/ethtool", "github.com/cilium/ebpf",
	}},
	{dir: "apps", level: 6, uses: []string{"runtime"}},
	{dir: "apps/memcached", level: 6, uses: []string{"runtime"}, never: []string{"net", "syscall", sys}},
	{dir: "apps/packet", level: 6, uses: []string{"driver", "runtime", "runtime/affinity", "runtime/user", "stack", "apps/packet/routes"}},
	{dir: "apps/packet/routes", level: 6, modules: []string{"github.com/vishvananda/netlink", sys}},
	{dir: "compare", level: 6, uses: []string{"bpf", "driver/...", "stack", "runtime/..."}, modules: []string{"...", gvisor}},
	{dir: "apps/pollux", level: 7, uses: []string{"..."}, modules: []string{"..."}},
}

// roomOf returns the deepest room that holds a directory.
func roomOf(dir string) (found room, ok bool) {
	for _, r := range house {
		if within(dir, r.dir) && (r.dir != "." || dir == ".") && (!ok || len(r.dir) > len(found.dir)) {
			found, ok = r, true
		}
	}
	return found, ok
}

// within says whether a slash-separated path is base or below it.
func within(p, base string) bool { return p == base || strings.HasPrefix(p, base+"/") || base == "." }

func matches(dir string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		if base, all := strings.CutSuffix(p, "/..."); all {
			return within(dir, base)
		}
		return p == "..." || p == dir
	})
}

// mayImport says why a file in a room must not import a package, or "".
func (r room) mayImport(pkg string, test bool) string {
	if pkg == "C" {
		if r.c {
			return ""
		}
		return "cgo belongs to driver/dpdk only"
	}
	if !test && slices.ContainsFunc(r.never, func(n string) bool { return pkg == n || within(pkg, n) && n != "net" }) {
		return "this room must do without it"
	}
	if pkg == module || strings.HasPrefix(pkg, module+"/") {
		dir := strings.TrimPrefix(strings.TrimPrefix(pkg, module), "/")
		target, ok := roomOf(path.Clean(dir))
		switch {
		case !ok:
			return "no such room in the house"
		case target.dir == r.dir || matches(target.dir, r.uses) || test && target.level < r.level:
			return ""
		case target.level >= r.level:
			return "an import that points up or sideways"
		}
		return "not in the room's column of the design"
	}
	if !strings.Contains(strings.Split(pkg, "/")[0], ".") {
		return "" // the standard library
	}
	if slices.ContainsFunc(r.modules, func(m string) bool { return within(pkg, m) }) {
		return ""
	}
	if within(pkg, gvisor) {
		return "gVisor stays inside stack, runtime/user and compare"
	}
	if test || slices.Contains(r.modules, "...") {
		return ""
	}
	return "not a module that this room may use"
}

// clockReaders are what package time offers to those who read the clock.
var clockReaders = []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "NewTimer", "NewTicker", "Tick"}

// clockReads lists the places where a file reads the clock.
func clockReads(fset *token.FileSet, file *ast.File) (places []string) {
	name := ""
	for _, spec := range file.Imports {
		if spec.Path.Value == `"time"` {
			name = "time"
			if spec.Name != nil {
				name = spec.Name.Name
			}
		}
	}
	if name == "" {
		return nil
	}
	ast.Inspect(file, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok {
			if x, ok := sel.X.(*ast.Ident); ok && x.Name == name && slices.Contains(clockReaders, sel.Sel.Name) {
				places = append(places, fmt.Sprintf("line %d: time.%s", fset.Position(sel.Pos()).Line, sel.Sel.Name))
			}
		}
		return true
	})
	return places
}

// cFiles are the names of C and C++ sources. (An empty .s file is Go's own way
// of allowing functions without a body.)
var cFiles = []string{".c", ".h", ".cc", ".hh", ".cpp", ".hpp", ".cxx", ".hxx", ".m"}

// violations walks a tree and returns what breaks the house, one line each,
// and the number of files it looked at.
func violations(root string) (broken []string, files int, err error) {
	err = filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if entry.IsDir() {
			// What the go command ignores, and what is built.
			base := entry.Name()
			if rel != "." && (strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_") || base == "testdata" || rel == "bin") {
				return fs.SkipDir
			}
			return nil
		}
		report := func(format string, args ...any) {
			broken = append(broken, rel+": "+fmt.Sprintf(format, args...))
		}
		r, known := roomOf(path.Dir(rel))
		switch ext := path.Ext(rel); {
		case slices.Contains(cFiles, ext):
			files++
			if !known || !r.c && !r.source {
				report("C belongs to bpf and driver/dpdk only")
			}
		case ext == ".go":
			files++
			if !known {
				report("no room of the house holds this directory")
				return nil
			}
			fset := token.NewFileSet()
			file, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
			if err != nil {
				return fmt.Errorf("parse %s: %w", rel, err)
			}
			test := strings.HasSuffix(rel, "_test.go")
			for _, spec := range file.Imports {
				pkg, err := strconv.Unquote(spec.Path.Value)
				if err != nil {
					return fmt.Errorf("parse %s: import %s: %w", rel, spec.Path.Value, err)
				}
				if why := r.mayImport(pkg, test); why != "" {
					report("imports %q: %s", pkg, why)
				}
			}
			if r.timeless && !test && path.Base(rel) != r.clock {
				for _, place := range clockReads(fset, file) {
					report("%s: time is an argument here", place)
				}
			}
		}
		return nil
	})
	return broken, files, err
}

func TestImportsPointDownOnly(t *testing.T) {
	broken, files, err := violations(".")
	if err != nil {
		t.Fatal(err)
	}
	if files < 10 {
		t.Fatalf("looked at %d files only: is this the root of the repository?", files)
	}
	for _, b := range broken {
		t.Error(b)
	}
}

func TestAPlantedViolationIsFound(t *testing.T) {
	source := func(imports ...string) string {
		var b strings.Builder
		b.WriteString("package p\n")
		for _, i := range imports {
			fmt.Fprintf(&b, "import _ %q\n", i)
		}
		return b.String()
	}
	for _, c := range []struct {
		file, source string
		wrong        bool
	}{
		{"driver/a.go", source("fmt", "unsafe"), false},
		{"driver/a.go", source(module + "/driver/wire"), true},
		{"driver/a.go", source(sys + "/unix"), true},
		{"driver/a.go", "package p\n\nimport \"C\"\n", true},
		{"driver/dpdk/a.go", "package p\n\nimport \"C\"\n", false},
		{"driver/dpdk/a.go", source(gvisor + "/pkg/tcpip"), true},
		{"driver/dpdk/sub/a.c", "", false},
		{"driver/dpdk/a.go", source(module + "/stack"), true},
		{"driver/dpdk/a_test.go", source(module + "/stack"), true},
		{"driver/capture/a.go", source(gopacket+"/pcapgo", module+"/driver"), false},
		{"driver/capture/a.go", source(module + "/driver/wire"), true},
		{"driver/capture/a_test.go", source(module + "/driver/wire"), false},
		{"driver/wire/a.go", source(gopacket), true},
		{"driver/wire/a.go", "package p\nimport \"time\"\nvar x = time.Now()\n", true},
		{"driver/wire/a.go", "package p\nimport clock \"time\"\nfunc f() { clock.Sleep(1) }\n", true},
		{"driver/wire/a.go", "package p\nimport \"time\"\nvar x = time.Second\n", false},
		{"driver/wire/a_test.go", "package p\nimport \"time\"\nvar x = time.Now()\n", false},
		{"stack/a.go", source(gvisor+"/pkg/tcpip", module+"/driver"), false},
		{"stack/a.go", source(module + "/runtime"), true},
		{"stack/a.go", source(module + "/driver/dpdk"), true},
		{"stack/a.go", "package p\nimport \"time\"\nfunc f() { time.Since(time.Time{}) }\n", true},
		{"stack/net_deadline.go", "package p\nimport \"time\"\nvar x = time.Now()\n", false},
		{"stack/a_test.go", source(module + "/driver/wire"), false},
		{"stack/a_test.go", source(module + "/runtime/user"), true},
		{"stack/a.c", "", true},
		{"stack/a.h", "", true},
		{"bpf/a.c", "", false},
		{"bpf/a.go", "package p\n\nimport \"C\"\n", true},
		{"runtime/a.go", source(module + "/driver"), true},
		{"runtime/user/a.go", source(module+"/stack", module+"/driver", module+"/runtime"), false},
		{"runtime/user/a.go", source(module + "/driver/dpdk"), true},
		{"runtime/kernel/a.go", source(module+"/bpf", module+"/runtime"), false},
		{"runtime/kernel/napi/a.go", source(module + "/runtime/kernel"), false},
		{"runtime/kernel/a.go", source(module + "/stack"), true},
		{"apps/memcached/a.go", source(module+"/runtime", module+"/apps/memcached/store", "net/netip"), false},
		{"apps/memcached/a.go", source("net"), true},
		{"apps/memcached/store/a.go", source("syscall"), true},
		{"apps/memcached/a.go", source(module + "/stack"), true},
		{"apps/memcached/a.go", source(module + "/apps/packet"), true},
		{"apps/packet/a.go", source(gvisor + "/pkg/tcpip"), true},
		{"apps/packet/a_test.go", source(gvisor + "/pkg/tcpip"), true},
		{"apps/pollux/a.go", source(module+"/apps/memcached", module+"/compare/lab", "github.com/spf13/cobra"), false},
		{"apps/pollux/a.go", source(gvisor + "/pkg/tcpip"), true},
		{"compare/lab/a.go", source(module+"/driver/dpdk", module+"/runtime/user", "github.com/vishvananda/netns"), false},
		{"compare/a.go", source(module + "/apps/memcached"), true},
		{"compare/load/a_test.go", source(module + "/apps/memcached"), true},
		{"apps/packet/a.go", source(module + "/apps/packet/routes"), false},
		{"apps/packet/a.go", source("github.com/vishvananda/netlink"), true},
		{"apps/packet/routes/a.go", source("github.com/vishvananda/netlink/nl"), false},
		{"apps/packet/routes/a.go", source(module + "/apps/packet/fib"), true},
		{"apps/packet/routes/a.go", source(module + "/driver"), true},
		{"bpf/forward/a_test.go", source(module + "/bpf/trio"), false},
		{"bpf/forward/a.go", source(module + "/bpf/trio"), true},
		{"elsewhere/a.go", source(), true},
		{"elsewhere/a.c", "", true},
		{"a.go", source(module + "/driver"), true},
		{"stack/testdata/a.c", "", false},
	} {
		root := t.TempDir()
		name := filepath.Join(root, filepath.FromSlash(c.file))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(c.source), 0o644); err != nil {
			t.Fatal(err)
		}
		broken, _, err := violations(root)
		if err != nil {
			t.Fatal(err)
		}
		if (len(broken) > 0) != c.wrong {
			t.Errorf("%s with\n%s\nfound %q, want a violation: %v", c.file, c.source, broken, c.wrong)
		}
	}
}
