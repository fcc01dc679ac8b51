;; `wasi_snapshot_preview1` for guests whose toolchain still speaks it: Go, Zig, and C or C++ with a libc. It is an adapter in the sense of
;; `wasm-tools component new --adapt wasi_snapshot_preview1=…` and of the crate wit-component, which keep only what the guest uses of it.
;;
;; It exists because the usual adapter cannot be used with Go. While the host passes a batch, it calls the guest's `cabi_realloc`, and a guest may call nothing
;; outside itself there ("cannot leave component instance"). But Go's runtime reads the clock whenever it collects garbage, also inside `cabi_realloc`.
;; So here a guest can have its clock kept inside:
;;
;; - `clock_res_get` with the clock 0x4d52 ("MR") reads the host's clocks and keeps the time. From then on `clock_time_get` answers from what is kept, one microsecond
;;   later each time. Go's SDK does this once while it starts, and then at the beginning of each call. (`sched_yield` would not do: Go's runtime calls it at times of its own.)
;; - A guest that never does it gets the host's time from each `clock_time_get`. That is right for C and Zig, which read no clock in `cabi_realloc`.
;;
;; What the other functions do:
;;
;; - `random_get` returns the host's random bytes, so they are fit for keys and tokens. Go's runtime calls it only while it starts.
;; - `fd_write` to 1 and 2 goes to `wasi:cli/stdout` and `stderr`, which are lines of the processor's log, and part of the explanation of a trap. A guest must not write
;;   within `cabi_realloc`: that is a trap.
;; - Nobody sleeps: `poll_oneoff` returns at once, and the guest's clock moves ahead by the time that it wanted to sleep. For the wall clock that lasts
;;   until the time is next read from the host.
;; - `proc_exit` is a trap, whatever the code: a module has no end of its own.
;; - There are no arguments, no environment, no files and no sockets. Standard input is empty.
;;
;; The memory is the guest's. The host returns two results through memory; they are written over the bytes from address 16 on, which are saved before and restored after.
;; No other code of the guest runs in between.
;;
;; The custom section at the end says what the imports are. It is `preview1.wit` in binary, and was printed by:
;;     wasm-tools component embed preview1.wit --world preview1 --dummy -t | grep component-type
(module
  (import "env" "memory" (memory 0))
  (import "wasi:clocks/wall-clock@0.2.0" "now" (func $host_wall (param i32)))
  (import "wasi:clocks/monotonic-clock@0.2.0" "now" (func $host_monotonic (result i64)))
  (import "wasi:random/random@0.2.0" "get-random-u64" (func $host_random (result i64)))
  (import "wasi:cli/stdout@0.2.0" "get-stdout" (func $host_stdout (result i32)))
  (import "wasi:cli/stderr@0.2.0" "get-stderr" (func $host_stderr (result i32)))
  (import "wasi:io/streams@0.2.0" "[method]output-stream.blocking-write-and-flush"
    (func $host_write (param $stream i32) (param $from i32) (param $length i32) (param $result i32)))

  ;; Whether the time is kept, and what it is, in nanoseconds.
  (global $kept (mut i32) (i32.const 0))
  (global $wall (mut i64) (i64.const 0))
  (global $monotonic (mut i64) (i64.const 0))
  ;; Nanoseconds that the guest has slept in all, by its own clock.
  (global $slept (mut i64) (i64.const 0))
  ;; Handles of the streams; 0 is no handle.
  (global $stdout (mut i32) (i32.const 0))
  (global $stderr (mut i32) (i32.const 0))

  ;; Where the host puts results, 8 bytes aligned.
  (global $scratch i32 (i32.const 16))
  ;; The most that one call of the host's streams takes.
  (global $write_bytes_max i32 (i32.const 4096))
  ;; The clock whose resolution nobody wants.
  (global $keeping i32 (i32.const 0x4d52))
  (global $success i32 (i32.const 0))
  (global $badf i32 (i32.const 8))
  (global $inval i32 (i32.const 28))
  (global $io i32 (i32.const 29))
  (global $nosys i32 (i32.const 52))

  ;; -- Time

  (func $read_wall (result i64)
    (local $0 i64) (local $1 i64) (local $now i64)
    (local.set $0 (i64.load (global.get $scratch)))
    (local.set $1 (i64.load offset=8 (global.get $scratch)))
    (call $host_wall (global.get $scratch))
    (local.set $now (i64.add
      (i64.mul (i64.load (global.get $scratch)) (i64.const 1000000000))
      (i64.load32_u offset=8 (global.get $scratch))))
    (i64.store (global.get $scratch) (local.get $0))
    (i64.store offset=8 (global.get $scratch) (local.get $1))
    (local.get $now))

  (func $read_monotonic (result i64)
    (i64.add (call $host_monotonic) (global.get $slept)))

  ;; The kept monotonic clock is up to some microseconds ahead of the host's, and never goes back.
  (func $keep_time
    (local $now i64)
    (global.set $wall (call $read_wall))
    (local.set $now (call $read_monotonic))
    (if (i64.gt_u (local.get $now) (global.get $monotonic))
      (then (global.set $monotonic (local.get $now))))
    (global.set $kept (i32.const 1)))

  (func $now (param $clock i32) (result i64)
    (if (i32.eqz (global.get $kept))
      (then (return (if (result i64) (local.get $clock)
        (then (call $read_monotonic)) (else (call $read_wall))))))
    (global.set $wall (i64.add (global.get $wall) (i64.const 1000)))
    (global.set $monotonic (i64.add (global.get $monotonic) (i64.const 1000)))
    (if (result i64) (local.get $clock)
      (then (global.get $monotonic)) (else (global.get $wall))))

  (func (export "clock_time_get") (param $clock i32) (param $precision i64) (param $to i32) (result i32)
    (if (i32.gt_u (local.get $clock) (i32.const 1)) (then (return (global.get $inval))))
    (i64.store (local.get $to) (call $now (local.get $clock)))
    (global.get $success))

  (func (export "clock_res_get") (param $clock i32) (param $to i32) (result i32)
    (if (i32.eq (local.get $clock) (global.get $keeping))
      (then (call $keep_time) (return (global.get $success))))
    (if (i32.gt_u (local.get $clock) (i32.const 1)) (then (return (global.get $inval))))
    ;; The host's clocks have milliseconds.
    (i64.store (local.get $to) (i64.const 1000000))
    (global.get $success))

  ;; Reports the clock that ends first, and if there is none, the first subscription: nothing else can happen any more.
  (func (export "poll_oneoff") (param $from i32) (param $to i32) (param $count i32) (param $events i32) (result i32)
    (local $each i32) (local $first i32) (local $left i64) (local $least i64)
    (if (i32.eqz (local.get $count)) (then (return (global.get $inval))))
    (local.set $first (local.get $from))
    (local.set $least (i64.const -1))
    (local.set $each (local.get $from))
    (block $done (loop $next
      (br_if $done (i32.eqz (local.get $count)))
      (if (i32.eqz (i32.load8_u offset=8 (local.get $each))) (then
        (local.set $left (call $left (local.get $each)))
        (if (i64.lt_u (local.get $left) (local.get $least)) (then
          (local.set $least (local.get $left))
          (local.set $first (local.get $each))))))
      (local.set $each (i32.add (local.get $each) (i32.const 48)))
      (local.set $count (i32.sub (local.get $count) (i32.const 1)))
      (br $next)))
    (if (i64.ne (local.get $least) (i64.const -1)) (then (call $sleep (local.get $least))))
    (i64.store (local.get $to) (i64.load (local.get $first)))
    ;; No error, and the type of the subscription.
    (i64.store offset=8 (local.get $to)
      (i64.shl (i64.load8_u offset=8 (local.get $first)) (i64.const 16)))
    (i64.store offset=16 (local.get $to) (i64.const 0))
    (i64.store offset=24 (local.get $to) (i64.const 0))
    (i32.store (local.get $events) (i32.const 1))
    (global.get $success))

  ;; Nanoseconds until a subscription to a clock ends.
  (func $left (param $subscription i32) (result i64)
    (local $timeout i64) (local $now i64)
    (local.set $timeout (i64.load offset=24 (local.get $subscription)))
    (if (i32.eqz (i32.and (i32.load16_u offset=40 (local.get $subscription)) (i32.const 1)))
      (then (return (local.get $timeout))))
    (local.set $now (call $now (i32.ne (i32.load offset=16 (local.get $subscription)) (i32.const 0))))
    (if (result i64) (i64.gt_u (local.get $timeout) (local.get $now))
      (then (i64.sub (local.get $timeout) (local.get $now)))
      (else (i64.const 0))))

  (func $sleep (param $duration i64)
    (global.set $slept (i64.add (global.get $slept) (local.get $duration)))
    (global.set $monotonic (i64.add (global.get $monotonic) (local.get $duration)))
    (global.set $wall (i64.add (global.get $wall) (local.get $duration))))

  (func (export "sched_yield") (result i32) (global.get $success))

  ;; -- Random numbers

  (func (export "random_get") (param $to i32) (param $length i32) (result i32)
    (local $bits i64)
    (block $short (loop $next
      (br_if $short (i32.lt_u (local.get $length) (i32.const 8)))
      (i64.store align=1 (local.get $to) (call $host_random))
      (local.set $to (i32.add (local.get $to) (i32.const 8)))
      (local.set $length (i32.sub (local.get $length) (i32.const 8)))
      (br $next)))
    (if (i32.eqz (local.get $length)) (then (return (global.get $success))))
    (local.set $bits (call $host_random))
    (block $done (loop $next
      (br_if $done (i32.eqz (local.get $length)))
      (i64.store8 (local.get $to) (local.get $bits))
      (local.set $bits (i64.shr_u (local.get $bits) (i64.const 8)))
      (local.set $to (i32.add (local.get $to) (i32.const 1)))
      (local.set $length (i32.sub (local.get $length) (i32.const 1)))
      (br $next)))
    (global.get $success))

  ;; -- Text

  (func (export "fd_write") (param $fd i32) (param $pieces i32) (param $count i32) (param $written i32) (result i32)
    (local $stream i32) (local $sum i32)
    (local.set $stream (call $stream (local.get $fd)))
    (if (i32.eqz (local.get $stream)) (then (return (global.get $badf))))
    (block $done (loop $next
      (br_if $done (i32.eqz (local.get $count)))
      (if (call $write (local.get $stream) (i32.load (local.get $pieces)) (i32.load offset=4 (local.get $pieces)))
        (then (return (global.get $io))))
      (local.set $sum (i32.add (local.get $sum) (i32.load offset=4 (local.get $pieces))))
      (local.set $pieces (i32.add (local.get $pieces) (i32.const 8)))
      (local.set $count (i32.sub (local.get $count) (i32.const 1)))
      (br $next)))
    (i32.store (local.get $written) (local.get $sum))
    (global.get $success))

  (func $stream (param $fd i32) (result i32)
    (if (i32.eq (local.get $fd) (i32.const 1)) (then
      (if (i32.eqz (global.get $stdout)) (then (global.set $stdout (call $host_stdout))))
      (return (global.get $stdout))))
    (if (i32.eq (local.get $fd) (i32.const 2)) (then
      (if (i32.eqz (global.get $stderr)) (then (global.set $stderr (call $host_stderr))))
      (return (global.get $stderr))))
    (i32.const 0))

  ;; Writes everything; returns 1 if the stream failed.
  (func $write (param $stream i32) (param $from i32) (param $length i32) (result i32)
    (local $0 i64) (local $1 i64) (local $piece i32) (local $failed i32)
    (local.set $0 (i64.load (global.get $scratch)))
    (local.set $1 (i64.load offset=8 (global.get $scratch)))
    (block $done (loop $next
      (br_if $done (i32.or (i32.eqz (local.get $length)) (local.get $failed)))
      (local.set $piece (local.get $length))
      (if (i32.gt_u (local.get $piece) (global.get $write_bytes_max))
        (then (local.set $piece (global.get $write_bytes_max))))
      (call $host_write (local.get $stream) (local.get $from) (local.get $piece) (global.get $scratch))
      (local.set $failed (i32.load8_u (global.get $scratch)))
      ;; Before the next piece is read: it may contain these bytes.
      (i64.store (global.get $scratch) (local.get $0))
      (i64.store offset=8 (global.get $scratch) (local.get $1))
      (local.set $from (i32.add (local.get $from) (local.get $piece)))
      (local.set $length (i32.sub (local.get $length) (local.get $piece)))
      (br $next)))
    (local.get $failed))

  (func (export "fd_read") (param $fd i32) (param $pieces i32) (param $count i32) (param $read i32) (result i32)
    (if (local.get $fd) (then (return (global.get $badf))))
    (i32.store (local.get $read) (i32.const 0))
    (global.get $success))

  ;; 0, 1 and 2 are terminals without a position, so libc passes each line on as soon as it ends.
  (func (export "fd_fdstat_get") (param $fd i32) (param $to i32) (result i32)
    (if (i32.gt_u (local.get $fd) (i32.const 2)) (then (return (global.get $badf))))
    ;; A character device without flags.
    (i64.store (local.get $to) (i64.const 2))
    ;; Rights: to read (2), or to write (64).
    (i64.store offset=8 (local.get $to)
      (select (i64.const 64) (i64.const 2) (local.get $fd)))
    (i64.store offset=16 (local.get $to) (i64.const 0))
    (global.get $success))
  (func (export "fd_filestat_get") (param $fd i32) (param $to i32) (result i32)
    (if (i32.gt_u (local.get $fd) (i32.const 2)) (then (return (global.get $badf))))
    (memory.fill (local.get $to) (i32.const 0) (i32.const 64))
    (i32.store8 offset=16 (local.get $to) (i32.const 2))
    (global.get $success))
  (func (export "fd_fdstat_set_flags") (param $fd i32) (param i32) (result i32)
    (select (global.get $badf) (global.get $success) (i32.gt_u (local.get $fd) (i32.const 2))))

  ;; -- The end, and what is not there

  (func (export "proc_exit") (param i32) unreachable)
  (func (export "proc_raise") (param i32) (result i32) unreachable)

  (func $none (param $count i32) (param $bytes i32) (result i32)
    (i32.store (local.get $count) (i32.const 0))
    (i32.store (local.get $bytes) (i32.const 0))
    (global.get $success))
  (func (export "args_sizes_get") (param i32 i32) (result i32) (call $none (local.get 0) (local.get 1)))
  (func (export "environ_sizes_get") (param i32 i32) (result i32) (call $none (local.get 0) (local.get 1)))
  (func (export "args_get") (param i32 i32) (result i32) (global.get $success))
  (func (export "environ_get") (param i32 i32) (result i32) (global.get $success))

  (func (export "fd_close") (param i32) (result i32) (global.get $badf))
  (func (export "fd_seek") (param i32 i64 i32 i32) (result i32) (global.get $badf))
  (func (export "fd_tell") (param i32 i32) (result i32) (global.get $badf))
  (func (export "fd_advise") (param i32 i64 i64 i32) (result i32) (global.get $badf))
  (func (export "fd_allocate") (param i32 i64 i64) (result i32) (global.get $badf))
  (func (export "fd_datasync") (param i32) (result i32) (global.get $badf))
  (func (export "fd_sync") (param i32) (result i32) (global.get $badf))
  (func (export "fd_fdstat_set_rights") (param i32 i64 i64) (result i32) (global.get $badf))
  (func (export "fd_filestat_set_size") (param i32 i64) (result i32) (global.get $badf))
  (func (export "fd_filestat_set_times") (param i32 i64 i64 i32) (result i32) (global.get $badf))
  (func (export "fd_pread") (param i32 i32 i32 i64 i32) (result i32) (global.get $badf))
  (func (export "fd_pwrite") (param i32 i32 i32 i64 i32) (result i32) (global.get $badf))
  (func (export "fd_prestat_get") (param i32 i32) (result i32) (global.get $badf))
  (func (export "fd_prestat_dir_name") (param i32 i32 i32) (result i32) (global.get $badf))
  (func (export "fd_readdir") (param i32 i32 i32 i64 i32) (result i32) (global.get $badf))
  (func (export "fd_renumber") (param i32 i32) (result i32) (global.get $badf))
  (func (export "path_create_directory") (param i32 i32 i32) (result i32) (global.get $badf))
  (func (export "path_filestat_get") (param i32 i32 i32 i32 i32) (result i32) (global.get $badf))
  (func (export "path_filestat_set_times") (param i32 i32 i32 i32 i64 i64 i32) (result i32) (global.get $badf))
  (func (export "path_link") (param i32 i32 i32 i32 i32 i32 i32) (result i32) (global.get $badf))
  (func (export "path_open") (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32) (global.get $badf))
  (func (export "path_readlink") (param i32 i32 i32 i32 i32 i32) (result i32) (global.get $badf))
  (func (export "path_remove_directory") (param i32 i32 i32) (result i32) (global.get $badf))
  (func (export "path_rename") (param i32 i32 i32 i32 i32 i32) (result i32) (global.get $badf))
  (func (export "path_symlink") (param i32 i32 i32 i32 i32) (result i32) (global.get $badf))
  (func (export "path_unlink_file") (param i32 i32 i32) (result i32) (global.get $badf))
  (func (export "sock_accept") (param i32 i32 i32) (result i32) (global.get $nosys))
  (func (export "sock_recv") (param i32 i32 i32 i32 i32 i32) (result i32) (global.get $nosys))
  (func (export "sock_send") (param i32 i32 i32 i32 i32) (result i32) (global.get $nosys))
  (func (export "sock_shutdown") (param i32 i32) (result i32) (global.get $nosys))

  (@custom "component-type" (after code) "\00asm\0d\00\01\00\00\19\16wit-component-encoding\04\00\07\9f\05\01A\02\01A\10\01B\04\01r\02\07secondsw\0bnanosecondsy\04\00\08datetime\03\00\00\01@\00\00\01\04\00\03now\01\02\03\00\1cwasi:clocks/wall-clock@0.2.0\05\00\01B\04\01w\04\00\07instant\03\00\00\01@\00\00\01\04\00\03now\01\02\03\00!wasi:clocks/monotonic-clock@0.2.0\05\01\01B\02\01@\00\00w\04\00\0eget-random-u64\01\00\03\00\18wasi:random/random@0.2.0\05\02\01B\01\04\00\05error\03\01\03\00\13wasi:io/error@0.2.0\05\03\02\03\00\03\05error\01B\0b\02\03\02\01\04\04\00\05error\03\00\00\01i\01\01q\02\15last-operation-failed\01\02\00\06closed\00\00\04\00\0cstream-error\03\00\03\04\00\0doutput-stream\03\01\01h\05\01p}\01j\00\01\04\01@\02\04self\06\08contents\07\00\08\04\00.[method]output-stream.blocking-write-and-flush\01\09\03\00\15wasi:io/streams@0.2.0\05\05\02\03\00\04\0doutput-stream\01B\05\02\03\02\01\06\04\00\0doutput-stream\03\00\00\01i\01\01@\00\00\02\04\00\0aget-stdout\01\03\03\00\15wasi:cli/stdout@0.2.0\05\07\01B\05\02\03\02\01\06\04\00\0doutput-stream\03\00\00\01i\01\01@\00\00\02\04\00\0aget-stderr\01\03\03\00\15wasi:cli/stderr@0.2.0\05\08\04\00\1amillrace:preview1/preview1\04\00\0b\0e\01\00\08preview1\03\00\00\00/\09producers\01\0cprocessed-by\01\0dwit-component\070.262.0")
)
