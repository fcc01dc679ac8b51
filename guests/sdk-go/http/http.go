// Package http is for components that answer the HTTP requests of a route: a function of one request, which the module registers when it starts.
//
//	func init() { http.Answer(answer) }
//
//	func main() {}
//
//	func answer(r *http.Request) *http.Response {
//		if r.Method != "GET" {
//			return http.Text(405, "only GET").Header("allow", "GET")
//		}
//		return http.JSON(200, map[string]string{"path": r.Path()})
//	}
//
// Handlers can be tested with plain go test: millracetest.NewRoute calls them.
package http

import (
	"encoding/json"
	"strings"
)

// Header is a name and a value.
type Header struct{ Name, Value string }

// Request is a request. Its body was read as a whole; one of more than 1 MiB was answered with 413.
type Request struct {
	// Method is such as GET.
	Method string
	// Target is path and query, as they were sent.
	Target string
	// Headers are in order; names are in lower case.
	Headers []Header
	Body    []byte
}

// Path is the path, which begins with that of the route.
func (r *Request) Path() string {
	path, _, _ := strings.Cut(r.Target, "?")
	return path
}

// Query is the query, without its question mark; empty if there is none.
func (r *Request) Query() string {
	_, query, _ := strings.Cut(r.Target, "?")
	return query
}

// Header is the value of the first header with this name, and whether there is one.
func (r *Request) Header(name string) (value string, ok bool) {
	for _, header := range r.Headers {
		if strings.EqualFold(header.Name, name) {
			return header.Value, true
		}
	}
	return "", false
}

// Response is an answer.
type Response struct {
	Status  int
	Headers []Header
	Body    []byte
}

// Header adds a header, and returns the answer.
func (r *Response) Header(name, value string) *Response {
	r.Headers = append(r.Headers, Header{strings.ToLower(name), value})
	return r
}

// Text answers with plain text.
func Text(status int, text string) *Response {
	response := &Response{Status: status, Body: []byte(text)}
	return response.Header("content-type", "text/plain; charset=utf-8")
}

// JSON answers with a value as JSON. It panics if the value has no JSON.
func JSON(status int, value any) *Response {
	body, err := json.Marshal(value)
	if err != nil {
		panic("millrace/http: " + err.Error())
	}
	response := &Response{Status: status, Body: body}
	return response.Header("content-type", "application/json")
}

// Answer makes this function the one that answers. Call it in a function init.
func Answer(answer func(*Request) *Response) {
	if registered != nil {
		panic("millrace/http: a module has one function that answers")
	}
	registered = answer
}

var registered func(*Request) *Response
