// Command check judges what the chart in ../gaios renders, and generates what in the chart is generated.
//
//	check decode FILE...      decodes rendered manifests strictly and writes their objects to standard output, as a JSON list
//	check notes CHART RELEASE KUBE_VERSION VALUES  writes what is told after an install into a namespace named as the release
//	check readme CHART        writes the table of values into CHART/README.md
//	check readme --check CHART  fails if that would change it
//
// It is a program of its own, in Go, because the types of Kubernetes are: what their decoder takes, a cluster takes.
package main

import (
	"errors"
	"fmt"
	"os"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) >= 2 && args[0] == "decode":
		return decodeFiles(args[1:], os.Stdout)
	case len(args) == 5 && args[0] == "notes":
		return writeNotes(args[1], args[2], args[3], args[4], os.Stdout)
	case len(args) == 2 && args[0] == "readme":
		return writeReadme(args[1])
	case len(args) == 3 && args[0] == "readme" && args[1] == "--check":
		return checkReadme(args[2])
	}
	return errors.New("usage: check decode FILE... | check notes CHART RELEASE KUBE_VERSION VALUES | check readme [--check] CHART")
}
