package compare

import (
	"io"
	"time"

	"github.com/schollz/progressbar/v3"
)

// progress is a bar that counts estimated time, so that the time left is right
// although steps differ.
type progress struct{ bar *progressbar.ProgressBar }

func newProgress(w io.Writer, total time.Duration) *progress {
	if w == nil {
		return &progress{}
	}
	return &progress{progressbar.NewOptions64(total.Milliseconds(), progressbar.OptionSetWriter(w), progressbar.OptionSetWidth(30),
		progressbar.OptionSetPredictTime(true), progressbar.OptionSetElapsedTime(true), progressbar.OptionThrottle(200*time.Millisecond),
		progressbar.OptionClearOnFinish())}
}

// step implements run.step.
func (p *progress) step(what string, done time.Duration) {
	if p.bar == nil {
		return
	}
	if what != "" {
		p.bar.Describe(what)
	}
	// It can only fail to write, or be over the estimate; neither matters.
	_ = p.bar.Add64(min(done.Milliseconds(), p.bar.GetMax64()-p.bar.State().CurrentNum))
}

func (p *progress) end() {
	if p.bar != nil {
		_ = p.bar.Finish()
	}
}
