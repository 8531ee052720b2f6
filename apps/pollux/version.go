package main

import (
	"fmt"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version may be set by the linker: -ldflags "-X main.version=1.2.3".
var version string

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print what this binary was built from",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			build, ok := debug.ReadBuildInfo()
			if !ok {
				return fmt.Errorf("this binary carries no build information; build it with go build")
			}
			settings := make(map[string]string)
			for _, s := range build.Settings {
				settings[s.Key] = s.Value
			}
			name := version
			if name == "" {
				name = build.Main.Version
			}
			out := cmd.OutOrStdout()
			fmt.Fprintf(out, "pollux %s\n", name)
			if revision := settings["vcs.revision"]; revision != "" {
				if settings["vcs.modified"] == "true" {
					revision += " and changes"
				}
				fmt.Fprintf(out, "  revision  %s (%s)\n", revision, settings["vcs.time"])
			}
			fmt.Fprintf(out, "  go        %s %s/%s\n", build.GoVersion, settings["GOOS"], settings["GOARCH"])
			if profile := settings["-pgo"]; profile != "" {
				fmt.Fprintf(out, "  profile   guided\n")
			}
			for _, dep := range build.Deps {
				if dep.Path == "gvisor.dev/gvisor" {
					fmt.Fprintf(out, "  gvisor    %s\n", dep.Version)
				}
			}
			return nil
		},
	}
}
