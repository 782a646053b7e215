// Writes prompts as Ollama does: with Go's own text/template, from a Modelfile's TEMPLATE and SYSTEM.
//
// Reads a JSON list of {"template", "system", "messages": [{"role", "content"}]} from standard input and writes
// the prompts as a JSON list.
package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

// Message has the names that templates of Ollama's use.
type Message struct {
	Role, Content string
}

// Case is a conversation and the template that writes it.
type Case struct {
	Template, System string
	Messages         []*Message
}

func main() {
	var cases []Case
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil {
		panic(err)
	}
	prompts := make([]string, 0, len(cases))
	for _, one := range cases {
		prompts = append(prompts, prompt(one))
	}
	if err := json.NewEncoder(os.Stdout).Encode(prompts); err != nil {
		panic(err)
	}
}

func prompt(one Case) string {
	// SYSTEM stands first where a conversation has no system message.
	messages := one.Messages
	if one.System != "" && (len(messages) == 0 || messages[0].Role != "system") {
		messages = append([]*Message{{"system", one.System}}, messages...)
	}
	var system []string
	for _, message := range messages {
		if message.Role == "system" {
			system = append(system, message.Content)
		}
	}
	parsed := template.Must(template.New("").Option("missingkey=zero").Parse(one.Template))
	var text strings.Builder
	values := map[string]any{"Messages": messages, "System": strings.Join(system, "\n\n"), "Response": ""}
	if err := parsed.Execute(&text, values); err != nil {
		panic(err)
	}
	return text.String()
}
