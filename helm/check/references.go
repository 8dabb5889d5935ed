package main

import (
	"errors"
	"fmt"

	certmanager "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	apps "k8s.io/api/apps/v1"
	batch "k8s.io/api/batch/v1"
	core "k8s.io/api/core/v1"
	network "k8s.io/api/networking/v1"
	policy "k8s.io/api/policy/v1"
	rbac "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
)

// rootCAs is the ConfigMap that Kubernetes puts into every namespace: the CA of its API.
const rootCAs = "kube-root-ca.crt"

// pod is what a workload makes its pods of.
type pod struct {
	owner  string
	labels labels.Set
	spec   core.PodSpec
	claims map[string]bool
}

// checkReferences finds what types cannot: names that nothing has, selectors that select nothing.
func checkReferences(objects []runtime.Object) error {
	var mistakes []error
	note := func(format string, args ...any) { mistakes = append(mistakes, fmt.Errorf(format, args...)) }

	names := map[string]bool{}
	var pods []pod
	for _, object := range objects {
		accessor, err := meta.Accessor(object)
		if err != nil {
			note("%T: %w", object, err)
			continue
		}
		name := fmt.Sprintf("%s/%s", object.GetObjectKind().GroupVersionKind().Kind, accessor.GetName())
		if names[name] {
			note("%s: rendered twice", name)
		}
		names[name] = true
		for _, problem := range validation.IsDNS1123Subdomain(accessor.GetName()) {
			note("%s: its name: %s", name, problem)
		}
		for key, value := range accessor.GetLabels() {
			for _, problem := range append(validation.IsQualifiedName(key), validation.IsValidLabelValue(value)...) {
				note("%s: label %s=%s: %s", name, key, value, problem)
			}
		}
		if certificate, ok := object.(*certmanager.Certificate); ok {
			names["Secret/"+certificate.Spec.SecretName] = true
		}
		template, selector := podTemplate(object)
		if template == nil {
			continue
		}
		made := pod{owner: name, labels: template.Labels, spec: template.Spec, claims: claims(object)}
		if selector != nil && !selects(selector, made.labels) {
			note("%s: its selector does not select its own pods", name)
		}
		pods = append(pods, made)
	}
	for _, made := range pods {
		mistakes = append(mistakes, checkPod(made, names)...)
	}
	for _, object := range objects {
		mistakes = append(mistakes, checkSelector(object, pods)...)
		if binding, ok := object.(*rbac.RoleBinding); ok {
			mistakes = append(mistakes, checkBinding(binding, names)...)
		}
	}
	return errors.Join(mistakes...)
}

func podTemplate(object runtime.Object) (*core.PodTemplateSpec, *metav1.LabelSelector) {
	switch workload := object.(type) {
	case *apps.Deployment:
		return &workload.Spec.Template, workload.Spec.Selector
	case *apps.StatefulSet:
		return &workload.Spec.Template, workload.Spec.Selector
	case *batch.Job:
		return &workload.Spec.Template, nil
	case *batch.CronJob:
		return &workload.Spec.JobTemplate.Spec.Template, nil
	case *core.Pod:
		return &core.PodTemplateSpec{ObjectMeta: workload.ObjectMeta, Spec: workload.Spec}, nil
	}
	return nil, nil
}

func claims(object runtime.Object) map[string]bool {
	names := map[string]bool{}
	if set, ok := object.(*apps.StatefulSet); ok {
		for _, claim := range set.Spec.VolumeClaimTemplates {
			names[claim.Name] = true
		}
	}
	return names
}

// checkPod looks for volumes, configuration and ports that containers name and the pod does not have. Secrets may come from
// elsewhere: that is what an existing secret is.
func checkPod(made pod, names map[string]bool) []error {
	var mistakes []error
	note := func(format string, args ...any) {
		mistakes = append(mistakes, fmt.Errorf(made.owner+": "+format, args...))
	}
	volumes := map[string]bool{}
	for name := range made.claims {
		volumes[name] = true
	}
	for _, volume := range made.spec.Volumes {
		volumes[volume.Name] = true
		for _, name := range configMaps(volume) {
			if !names["ConfigMap/"+name] && name != rootCAs {
				note("volume %s: no ConfigMap %s", volume.Name, name)
			}
		}
	}
	if account := made.spec.ServiceAccountName; account != "" && account != "default" && !names["ServiceAccount/"+account] {
		note("no ServiceAccount %s", account)
	}
	mounted := map[string]bool{}
	all := append(append([]core.Container{}, made.spec.InitContainers...), made.spec.Containers...)
	for _, container := range all {
		for _, mount := range container.VolumeMounts {
			mounted[mount.Name] = true
			if !volumes[mount.Name] {
				note("container %s: no volume %s", container.Name, mount.Name)
			}
		}
		for kind, probe := range map[string]*core.Probe{
			"startup": container.StartupProbe, "liveness": container.LivenessProbe, "readiness": container.ReadinessProbe,
		} {
			if probe != nil && probe.HTTPGet != nil && !hasPort(container.Ports, probe.HTTPGet.Port) {
				note("container %s: %s probe: no port %s", container.Name, kind, probe.HTTPGet.Port.String())
			}
		}
	}
	for name := range volumes {
		if !mounted[name] {
			note("volume %s is mounted by no container", name)
		}
	}
	return mistakes
}

// configMaps gives the names of those that a volume is made of.
func configMaps(volume core.Volume) []string {
	var names []string
	if volume.ConfigMap != nil {
		names = append(names, volume.ConfigMap.Name)
	}
	if volume.Projected != nil {
		for _, source := range volume.Projected.Sources {
			if source.ConfigMap != nil {
				names = append(names, source.ConfigMap.Name)
			}
		}
	}
	return names
}

// checkBinding wants a role and accounts that are rendered, too. Kubernetes takes a binding of what is not there.
func checkBinding(binding *rbac.RoleBinding, names map[string]bool) []error {
	var mistakes []error
	wanted := []string{binding.RoleRef.Kind + "/" + binding.RoleRef.Name}
	for _, subject := range binding.Subjects {
		wanted = append(wanted, subject.Kind+"/"+subject.Name)
	}
	for _, name := range wanted {
		if !names[name] {
			mistakes = append(mistakes, fmt.Errorf("RoleBinding/%s: no %s", binding.Name, name))
		}
	}
	return mistakes
}

func hasPort(ports []core.ContainerPort, wanted intstr.IntOrString) bool {
	for _, port := range ports {
		if port.Name == wanted.StrVal || wanted.Type == intstr.Int && port.ContainerPort == wanted.IntVal {
			return true
		}
	}
	return false
}

// checkSelector wants of whatever selects pods that there are some, and that they have the ports it names.
func checkSelector(object runtime.Object, pods []pod) []error {
	name := object.GetObjectKind().GroupVersionKind().Kind
	var selector *metav1.LabelSelector
	var ports []intstr.IntOrString
	switch selecting := object.(type) {
	case *core.Service:
		if selecting.Spec.Selector == nil {
			return nil
		}
		name += "/" + selecting.Name
		selector = &metav1.LabelSelector{MatchLabels: withoutPodName(selecting.Spec.Selector)}
		for _, port := range selecting.Spec.Ports {
			ports = append(ports, port.TargetPort)
		}
	case *policy.PodDisruptionBudget:
		name += "/" + selecting.Name
		selector = selecting.Spec.Selector
	case *network.NetworkPolicy:
		name += "/" + selecting.Name
		selector = &selecting.Spec.PodSelector
		for _, rule := range selecting.Spec.Ingress {
			for _, port := range rule.Ports {
				if port.Port != nil {
					ports = append(ports, *port.Port)
				}
			}
		}
	default:
		return nil
	}
	var mistakes []error
	found := false
	for _, made := range pods {
		if !selects(selector, made.labels) {
			continue
		}
		found = true
		for _, port := range ports {
			var has bool
			for _, container := range made.spec.Containers {
				has = has || hasPort(container.Ports, port)
			}
			if !has {
				mistakes = append(mistakes, fmt.Errorf("%s: %s has no port %s", name, made.owner, port.String()))
			}
		}
	}
	if !found {
		mistakes = append(mistakes, fmt.Errorf("%s: selects no pod", name))
	}
	return mistakes
}

// withoutPodName leaves out the label that the controller of a StatefulSet adds to each pod.
func withoutPodName(selector map[string]string) map[string]string {
	rest := map[string]string{}
	for key, value := range selector {
		if key != apps.StatefulSetPodNameLabel {
			rest[key] = value
		}
	}
	return rest
}

func selects(selector *metav1.LabelSelector, set labels.Set) bool {
	converted, err := metav1.LabelSelectorAsSelector(selector)
	return err == nil && converted.Matches(set)
}
