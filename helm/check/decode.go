package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	certmanager "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"k8s.io/apimachinery/pkg/runtime"
	serializer "k8s.io/apimachinery/pkg/runtime/serializer/json"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	kubernetes "k8s.io/client-go/kubernetes/scheme"
	gateway "sigs.k8s.io/gateway-api/apis/v1"
)

// newScheme knows every kind that the chart may render: those of Kubernetes, and the resources of others that it supports.
func newScheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		kubernetes.AddToScheme, certmanager.AddToScheme, monitoring.AddToScheme, gateway.Install,
	} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	return scheme, nil
}

// decodeFiles decodes every document of every file, reports all mistakes, and writes the objects.
func decodeFiles(files []string, out io.Writer) error {
	scheme, err := newScheme()
	if err != nil {
		return err
	}
	options := serializer.SerializerOptions{Yaml: true, Strict: true}
	decoder := serializer.NewSerializerWithOptions(serializer.DefaultMetaFactory, scheme, scheme, options)
	var objects []runtime.Object
	var mistakes []error
	for _, file := range files {
		found, err := decodeFile(file, decoder)
		objects = append(objects, found...)
		mistakes = append(mistakes, err)
	}
	mistakes = append(mistakes, checkReferences(objects))
	if err := errors.Join(mistakes...); err != nil {
		return err
	}
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", " ")
	return encoder.Encode(objects)
}

func decodeFile(name string, decoder runtime.Decoder) ([]runtime.Object, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	reader := utilyaml.NewYAMLReader(bufio.NewReader(file))
	var objects []runtime.Object
	var mistakes []error
	for number := 1; ; number++ {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return objects, fmt.Errorf("%s: document %d: %w", name, number, err)
		}
		if isEmpty(document) {
			continue
		}
		object, _, err := decoder.Decode(document, nil, nil)
		if err != nil {
			mistakes = append(mistakes, fmt.Errorf("%s: document %d: %w", name, number, err))
		}
		if object != nil {
			objects = append(objects, object)
		}
	}
	return objects, errors.Join(mistakes...)
}

// isEmpty tells whether a document has nothing but comments.
func isEmpty(document []byte) bool {
	var content any
	return utilyaml.Unmarshal(document, &content) == nil && content == nil
}
