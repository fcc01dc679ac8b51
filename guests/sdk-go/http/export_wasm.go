//go:build wasip1

package http

import (
	"errors"
	"strings"

	"millrace/internal/host"
)

//go:wasmexport wasi:http/incoming-handler@0.2.12#handle
func exportedHandle(request, out uint32) {
	defer host.Explain()
	host.KeepTime()
	if registered == nil {
		panic("millrace/http: nothing answers: call http.Answer in a function init")
	}
	response := respond(request)
	headers := make([]host.Header, len(response.Headers))
	for index, header := range response.Headers {
		headers[index] = host.Header{Name: header.Name, Value: []byte(header.Value)}
	}
	host.Give(out, response.Status, headers, response.Body)
	host.Answered()
}

func respond(request uint32) *Response {
	asked := &Request{}
	var headers []host.Header
	asked.Method, asked.Target, headers = host.ReadHead(request)
	for _, header := range headers {
		asked.Headers = append(asked.Headers, Header{strings.ToLower(header.Name), string(header.Value)})
	}
	body, err := host.ReadBody(request)
	switch {
	case errors.Is(err, host.ErrBodyTooLarge):
		return Text(413, err.Error())
	case err != nil:
		return Text(400, err.Error())
	}
	asked.Body = body
	response := registered(asked)
	if response == nil {
		panic("millrace/http: the function that answers returned nil")
	}
	return response
}
