//go:build node

package memcached_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Two clients of Node's, as the npm registry has them. Apart from the other
// tests, because it needs Node and fetches from that registry:
//
//	go test -tags node -run Node ./apps/memcached
func TestNodesClientsAreServed(t *testing.T) {
	host, port, _ := listen(t)
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join("testdata", "node"))); err != nil {
		t.Fatal(err)
	}
	install := exec.Command("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
	install.Dir = dir
	if out, err := install.CombinedOutput(); err != nil {
		t.Fatalf("npm ci: %v: %s\nif npm is missing: apt-get install nodejs npm", err, out)
	}
	client := exec.Command("node", "clients.js", host, port)
	client.Dir = dir
	if out, err := client.CombinedOutput(); err != nil || string(out) != "ok\n" {
		t.Errorf("%v: %s", err, out)
	}
}
