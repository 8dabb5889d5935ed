package main

import (
	"fmt"
	"io"

	"helm.sh/helm/v3/pkg/action"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/cli/values"
	"helm.sh/helm/v3/pkg/getter"
)

// writeNotes writes what `helm install` would tell whoever ran it, which `helm template` does not.
func writeNotes(chart, release, kubeVersion, valuesFile string, out io.Writer) error {
	loaded, err := loader.Load(chart)
	if err != nil {
		return err
	}
	options := values.Options{ValueFiles: []string{valuesFile}}
	given, err := options.MergeValues(getter.Providers{})
	if err != nil {
		return err
	}
	version, err := chartutil.ParseKubeVersion(kubeVersion)
	if err != nil {
		return err
	}
	install := action.NewInstall(&action.Configuration{Log: func(string, ...any) {}})
	install.ReleaseName, install.Namespace = release, release
	install.DryRun, install.ClientOnly, install.Replace = true, true, true
	install.KubeVersion = version
	made, err := install.Run(loaded, given)
	if err != nil {
		return err
	}
	_, err = fmt.Fprint(out, made.Info.Notes)
	return err
}
