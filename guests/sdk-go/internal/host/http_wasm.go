//go:build wasip1

package host

import (
	"errors"
	"unsafe"
)

// Requests and answers as wasi:http of WASI 0.2 has them. A number is the handle of a resource. An instance answers one request, so nothing is dropped but what must be before something
// else can be done.

const (
	// Bytes of a request's body.
	bodyBytesMax = 1 << 20
	// Bytes that are read at a time.
	readBytes = 64 << 10
	// Bytes that are written at a time, which WASI sets.
	writeBytes = 4 << 10
)

// Errors of a request's body.
var (
	ErrBodyTooLarge = errors.New("the body is too large")
	ErrBodyCutOff   = errors.New("the body cannot be read")
)

//go:wasmimport wasi:http/types@0.2.12 [method]incoming-request.method
func requestMethod(request uint32, result unsafe.Pointer)

//go:wasmimport wasi:http/types@0.2.12 [method]incoming-request.path-with-query
func requestTarget(request uint32, result unsafe.Pointer)

//go:wasmimport wasi:http/types@0.2.12 [method]incoming-request.headers
func requestHeaders(request uint32) uint32

//go:wasmimport wasi:http/types@0.2.12 [method]fields.entries
func fieldsEntries(fields uint32, result unsafe.Pointer)

//go:wasmimport wasi:http/types@0.2.12 [method]incoming-request.consume
func requestConsume(request uint32, result unsafe.Pointer)

//go:wasmimport wasi:http/types@0.2.12 [method]incoming-body.stream
func bodyStream(body uint32, result unsafe.Pointer)

//go:wasmimport wasi:io/streams@0.2.12 [method]input-stream.blocking-read
func streamRead(stream uint32, size uint64, result unsafe.Pointer)

//go:wasmimport wasi:http/types@0.2.12 [constructor]fields
func fieldsNew() uint32

//go:wasmimport wasi:http/types@0.2.12 [method]fields.append
func fieldsAppend(fields uint32, name unsafe.Pointer, nameSize uint32, value unsafe.Pointer, valueSize uint32, result unsafe.Pointer)

//go:wasmimport wasi:http/types@0.2.12 [constructor]outgoing-response
func responseNew(fields uint32) uint32

//go:wasmimport wasi:http/types@0.2.12 [method]outgoing-response.set-status-code
func responseSetStatus(response, status uint32) uint32

//go:wasmimport wasi:http/types@0.2.12 [method]outgoing-response.body
func responseBody(response uint32, result unsafe.Pointer)

//go:wasmimport wasi:http/types@0.2.12 [static]response-outparam.set
func outSet(out, isError, response uint32, _ uint32, _ uint64, _, _, _, _ uint32)

//go:wasmimport wasi:http/types@0.2.12 [method]outgoing-body.write
func bodyWrite(body uint32, result unsafe.Pointer)

//go:wasmimport wasi:io/streams@0.2.12 [method]output-stream.blocking-write-and-flush
func streamWrite(stream uint32, data unsafe.Pointer, size uint32, result unsafe.Pointer)

//go:wasmimport wasi:io/streams@0.2.12 [resource-drop]output-stream
func streamDrop(stream uint32)

//go:wasmimport wasi:http/types@0.2.12 [static]outgoing-body.finish
func bodyFinish(body, hasTrailers, trailers uint32, result unsafe.Pointer)

var methods = [...]string{"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"}

// ReadHead is the method, the path with the query, and the headers of a request.
func ReadHead(request uint32) (method, target string, headers []Header) {
	requestMethod(request, resultPointer())
	if number := uint8(result[0]); int(number) < len(methods) {
		method = methods[number]
	} else {
		method = string(List[byte](result[1], result[2]))
	}
	requestTarget(request, resultPointer())
	if uint8(result[0]) != 0 {
		target = string(List[byte](result[1], result[2]))
	}
	fieldsEntries(requestHeaders(request), resultPointer())
	for _, entry := range List[[4]uint32](result[0], result[1]) {
		header := Header{string(List[byte](entry[0], entry[1])), append([]byte{}, List[byte](entry[2], entry[3])...)}
		headers = append(headers, header)
	}
	return method, target, headers
}

// ReadBody is the whole body of a request.
func ReadBody(request uint32) ([]byte, error) {
	requestConsume(request, resultPointer())
	if uint8(result[0]) != 0 {
		return nil, ErrBodyCutOff
	}
	bodyStream(result[1], resultPointer())
	if uint8(result[0]) != 0 {
		return nil, ErrBodyCutOff
	}
	stream := result[1]
	body := []byte{}
	for {
		streamRead(stream, readBytes, resultPointer())
		if uint8(result[0]) != 0 {
			// The stream is closed at the end of the body, and failed if the body was cut off.
			if uint8(result[1]) == 1 {
				return body, nil
			}
			return nil, ErrBodyCutOff
		}
		body = append(body, List[byte](result[1], result[2])...)
		if len(body) > bodyBytesMax {
			return nil, ErrBodyTooLarge
		}
	}
}

// finished has room for the error of outgoing-body.finish, which is larger than other results.
var finished [5]uint64

// Give gives the answer to a request.
func Give(out uint32, status int, headers []Header, body []byte) {
	fields := fieldsNew()
	for _, header := range headers {
		name, nameSize := text(ValidText(header.Name))
		value, valueSize := pointer(header.Value)
		fieldsAppend(fields, name, nameSize, value, valueSize, resultPointer())
		if uint8(result[0]) != 0 {
			panic("millrace/http: the header " + header.Name + " of the answer cannot be sent")
		}
	}
	response := responseNew(fields)
	if responseSetStatus(response, uint32(status)) != 0 {
		panic("millrace/http: the status of the answer is none")
	}
	responseBody(response, resultPointer())
	outgoing := result[1]
	outSet(out, 0, response, 0, 0, 0, 0, 0, 0)
	bodyWrite(outgoing, resultPointer())
	stream := result[1]
	for len(body) > 0 {
		part := body[:min(len(body), writeBytes)]
		body = body[len(part):]
		data, size := pointer(part)
		streamWrite(stream, data, size, resultPointer())
		// Whoever asked may be gone by now.
		if uint8(result[0]) != 0 {
			break
		}
	}
	streamDrop(stream)
	bodyFinish(outgoing, 0, 0, unsafe.Pointer(&finished))
}
