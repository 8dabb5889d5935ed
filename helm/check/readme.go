package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"
)

// What stands between these lines of the README is generated.
const (
	begin = "<!-- values: generated from values.yaml by `cargo xtask helm --write` -->\n"
	end   = "<!-- end of values -->\n"
)

func writeReadme(chart string) error {
	_, wanted, err := readme(chart)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(chart, "README.md"), wanted, 0o644)
}

func checkReadme(chart string) error {
	found, wanted, err := readme(chart)
	if err == nil && !bytes.Equal(found, wanted) {
		err = fmt.Errorf("%s/README.md is out of date: run `cargo xtask helm --write`", chart)
	}
	return err
}

// readme gives the README as it is and as it should be.
func readme(chart string) (found, wanted []byte, err error) {
	if found, err = os.ReadFile(filepath.Join(chart, "README.md")); err != nil {
		return nil, nil, err
	}
	before, rest, ok := strings.Cut(string(found), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return nil, nil, fmt.Errorf("%s/README.md: without the lines between which values are told", chart)
	}
	values, err := os.ReadFile(filepath.Join(chart, "values.yaml"))
	if err != nil {
		return nil, nil, err
	}
	var document yaml.Node
	if err := yaml.Unmarshal(values, &document); err != nil {
		return nil, nil, fmt.Errorf("%s/values.yaml: %w", chart, err)
	}
	table, err := tables(document.Content[0])
	return found, []byte(before + begin + table + end + after), err
}

// tables gives one table per section of the values, which are the keys without indentation.
func tables(root *yaml.Node) (string, error) {
	var page strings.Builder
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		about := comment(key)
		if about == "" {
			return "", fmt.Errorf("values.yaml:%d: %s has no comment", key.Line, key.Value)
		}
		fmt.Fprintf(&page, "\n### `%s`\n\n%s\n", key.Value, about)
		if value.Kind != yaml.MappingNode || len(value.Content) == 0 {
			fmt.Fprintf(&page, "\nDefault: %s\n", shown(value))
			continue
		}
		page.WriteString("\n| value | default | |\n| --- | --- | --- |\n")
		if err := rows(&page, key.Value, value); err != nil {
			return "", err
		}
	}
	page.WriteString("\n")
	return page.String(), nil
}

func rows(page *strings.Builder, path string, section *yaml.Node) error {
	for i := 0; i+1 < len(section.Content); i += 2 {
		key, value := section.Content[i], section.Content[i+1]
		name := path + "." + key.Value
		about := strings.ReplaceAll(strings.ReplaceAll(comment(key), "\n", " "), "|", "\\|")
		// A section whose parts are told one by one needs no words of its own; all else does.
		told := value.Kind == yaml.MappingNode && len(value.Content) > 0 && hasComments(value)
		if about == "" && !told {
			return fmt.Errorf("values.yaml:%d: %s has no comment", key.Line, name)
		}
		if !told {
			fmt.Fprintf(page, "| `%s` | %s | %s |\n", name, shown(value), about)
			continue
		}
		if about != "" {
			fmt.Fprintf(page, "| `%s` | | %s |\n", name, about)
		}
		if err := rows(page, name, value); err != nil {
			return err
		}
	}
	return nil
}

func hasComments(section *yaml.Node) bool {
	for i := 0; i < len(section.Content); i += 2 {
		if comment(section.Content[i]) != "" || hasComments(section.Content[i+1]) {
			return true
		}
	}
	return false
}

// comment is what stands above a key.
func comment(key *yaml.Node) string {
	lines := strings.Split(key.HeadComment, "\n")
	for i, line := range lines {
		lines[i] = strings.TrimSpace(strings.TrimPrefix(line, "#"))
	}
	return strings.TrimSpace(strings.Join(lines, "\n"))
}

func shown(value *yaml.Node) string {
	flow := *value
	flatten(&flow)
	text, err := yaml.Marshal(&flow)
	if err != nil {
		return ""
	}
	return "`" + strings.TrimSpace(strings.ReplaceAll(string(text), "|", "\\|")) + "`"
}

// flatten makes a value print on one line, without its comments.
func flatten(value *yaml.Node) {
	value.Style |= yaml.FlowStyle
	value.HeadComment, value.LineComment, value.FootComment = "", "", ""
	for _, part := range value.Content {
		flatten(part)
	}
}
