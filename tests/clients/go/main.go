// A client of the matrix of clients and proxies (../run.py): Go's net/http. Reads commands from standard input, a JSON object a line, and
// answers each with a line: the id, and a status or what went wrong.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"
)

type command struct {
	ID      string            `json:"id"`
	Sleep   float64           `json:"sleep"`
	Method  string            `json:"method"`
	URL     string            `json:"url"`
	Headers map[string]string `json:"headers"`
	Bytes   int64             `json:"bytes"`
	Chunked bool              `json:"chunked"`
	Find    string            `json:"find"`
}

// letters is a body of text that is never held whole.
type letters struct{ left int64 }

func (l *letters) Read(p []byte) (int, error) {
	if l.left == 0 {
		return 0, io.EOF
	}
	n := min(int64(len(p)), l.left)
	for i := range p[:n] {
		p[i] = 'x'
	}
	l.left -= n
	return int(n), nil
}

func ask(c command) (string, error) {
	var body io.Reader
	if c.Bytes > 0 {
		body = &letters{c.Bytes}
	}
	request, err := http.NewRequest(c.Method, c.URL, body)
	if err != nil {
		return "", err
	}
	if !c.Chunked {
		request.ContentLength = c.Bytes
	}
	for name, value := range c.Headers {
		request.Header.Set(name, value)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return "", err
	}
	if c.Find != "" {
		return fmt.Sprintf("%d %t", response.StatusCode, strings.Contains(string(text), c.Find)), nil
	}
	return fmt.Sprint(response.StatusCode), nil
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var c command
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			panic(err)
		}
		if c.Sleep > 0 {
			time.Sleep(time.Duration(c.Sleep * float64(time.Second)))
			continue
		}
		answer, err := ask(c)
		if err != nil {
			answer = strings.ReplaceAll(err.Error(), "\n", " ")
		}
		fmt.Printf("%s\t%s\n", c.ID, answer)
	}
}
