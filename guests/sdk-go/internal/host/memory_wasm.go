//go:build wasip1

package host

import "unsafe"

// Where the host puts what it passes: memory of one call, in which allocations only move a position forward. The next call begins where this one began. So a
// batch costs the garbage collector nothing.
var (
	block    []byte
	position uintptr
	// Blocks that are full but still in use.
	earlier [][]byte
	// Whether the answer is complete: then the next allocation is that of a new call.
	answered bool
)

const blockBytes = 256 << 10

// Answered says that the call is over; what it was passed is overwritten by the next one.
func Answered() { answered = true }

//go:wasmexport cabi_realloc
func cabiRealloc(old unsafe.Pointer, oldSize, align, size uint32) unsafe.Pointer {
	if answered {
		reset()
	}
	if size == 0 {
		return at(align)
	}
	start := (position + uintptr(align) - 1) &^ (uintptr(align) - 1)
	if start+uintptr(size) > uintptr(len(block)) {
		start = 0
		grow(uintptr(size))
	}
	position = start + uintptr(size)
	memory := unsafe.Pointer(&block[start])
	if oldSize != 0 {
		copy(unsafe.Slice((*byte)(memory), size), unsafe.Slice((*byte)(old), oldSize))
	}
	return memory
}

// grow begins a new block. Blocks of this size are aligned to more than 8 bytes.
func grow(size uintptr) {
	if block != nil {
		earlier = append(earlier, block)
	}
	block = make([]byte, max(size, 2*uintptr(len(block)), blockBytes))
}

// reset begins a new call. Several blocks become one, so that calls of the same size need no further ones.
func reset() {
	answered = false
	position = 0
	if len(earlier) == 0 {
		return
	}
	sum := len(block)
	for _, block := range earlier {
		sum += len(block)
	}
	earlier, block = nil, nil
	block = make([]byte, sum)
}
