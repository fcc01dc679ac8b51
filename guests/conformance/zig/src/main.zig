//! The processor of the conformance scenario (../README.md), in Zig, without an SDK: the canonical ABI of wit/, by hand. No libc and no WASI is needed.
//!
//! A list is an address and a length, a record is its fields in order, and what an exported function gets is the address of its arguments. The answer stays in memory until the
//! next call.

const std = @import("std");

/// The length of an absent byte string.
const none = std.math.maxInt(u32);

fn List(comptime Item: type) type {
    return extern struct {
        address: u32 = 0,
        length: u32 = 0,

        const Self = @This();

        fn of(items: []const Item) Self {
            // A slice without items may point anywhere, also where the host allows no list.
            if (items.len == 0) return .{};
            return .{ .address = @intCast(@intFromPtr(items.ptr)), .length = @intCast(items.len) };
        }

        fn slice(self: Self) []Item {
            if (self.length == 0) return &.{};
            return @as([*]Item, @ptrFromInt(self.address))[0..self.length];
        }
    };
}

const Text = List(u8);
const Span = extern struct { start: u32, length: u32 };

/// `batch` in wit/types.wit. Lists of spans count numbers, two for each span.
const Batch = extern struct {
    topic: Text,
    partition: u32,
    data: Text,
    offsets: List(u64),
    timestamps: List(u64),
    attempts: List(u32),
    keys: List(u32),
    values: List(u32),
    header_ends: List(u32),
    headers: List(u32),
};

const Detail = extern struct {
    message: u32,
    after_ms: extern struct { is_some: u8 = 0, value: u64 = 0 } = .{},
    class: Text,
    reason: Text,
};

/// `result<answer, batch-error>`: this processor never says that a batch failed.
const Answer = extern struct {
    is_error: u8 = 0,
    outcomes: Text = .{},
    details: List(Detail) = .{},
    data: Text = .{},
    sources: List(u32) = .{},
    topic_names: List(Text) = .{},
    topics: List(u32) = .{},
    partitions: List(u32) = .{},
    keys: List(u32) = .{},
    values: List(u32) = .{},
    header_ends: List(u32) = .{},
    headers: List(u32) = .{},
    times: List(u64) = .{},
};

const OptionalText = extern struct { is_some: u8, value: Text };

const Label = extern struct { name: Text, value: Text };

/// What `state.add` returns: sums, or `full` with a reason.
const Sums = extern struct {
    is_error: u8,
    of: extern union {
        sums: List(i64),
        full: extern struct { case: u8, reason: Text },
    },
};

const host = struct {
    extern "millrace:broker/log@0.1.1" fn log(level: u32, text: [*]const u8, length: usize) void;
    extern "millrace:broker/config@0.1.1" fn get(key: [*]const u8, length: usize, result: *OptionalText) void;
    extern "millrace:broker/state@0.1.1" fn add(
        data: u32,
        data_length: u32,
        keys: [*]const u32,
        keys_length: usize,
        deltas: u32,
        deltas_length: u32,
        ttl_ms: u32,
        ttl_ms_length: u32,
        messages: [*]const u32,
        messages_length: usize,
        result: *Sums,
    ) void;
};

/// Two imports are called `add`, which are one name in Zig.
const metrics = struct {
    extern "millrace:broker/metrics@0.1.1" fn add(name: [*]const u8, length: usize, labels: [*]const Label, count: usize, delta: u64) void;
};

const Level = enum(u32) { err, warn, info, debug };

fn log(level: Level, text: []const u8) void {
    host.log(@intFromEnum(level), text.ptr, text.len);
}

/// The memory of one call. Everything in it is forgotten when the next call begins.
var arena: std.heap.ArenaAllocator = .init(std.heap.wasm_allocator);
var answered = false;
var answer: Answer = .{};

/// Where the host puts what it passes.
export fn cabi_realloc(old: ?[*]u8, old_size: usize, alignment: usize, size: usize) ?[*]u8 {
    if (answered) {
        _ = arena.reset(.retain_capacity);
        answered = false;
    }
    if (size == 0) return @ptrFromInt(alignment);
    const memory = arena.allocator().rawAlloc(size, .fromByteUnits(alignment), @returnAddress()) orelse @trap();
    if (old_size != 0) @memcpy(memory[0..@min(old_size, size)], old.?[0..@min(old_size, size)]);
    return memory;
}

fn process(batch: *const Batch) callconv(.c) *const Answer {
    answer = .{};
    respond(batch) catch @panic("out of memory");
    answered = true;
    return &answer;
}

comptime {
    @export(&process, .{ .name = "millrace:broker/message-processor@0.1.1#process" });
}

fn respond(batch: *const Batch) !void {
    const memory = arena.allocator();
    const count = batch.offsets.length;
    const data = batch.data.slice();
    const input_headers = batch.headers.slice();
    const suffix = config("suffix");
    const sums = try addOne(batch, memory);

    const outcomes = try memory.alloc(u8, count);
    var details: std.ArrayList(Detail) = .empty;
    var fresh: std.ArrayList(u8) = try .initCapacity(memory, "count".len + data.len + (suffix.len + 20) * count);
    var sources: std.ArrayList(u32) = try .initCapacity(memory, count);
    var values: std.ArrayList(u32) = try .initCapacity(memory, count * 2);
    var header_ends: std.ArrayList(u32) = try .initCapacity(memory, count);
    var headers: std.ArrayList(u32) = try .initCapacity(memory, input_headers.len + count * 4);
    // Every output has this name of a header, so it is in the answer once.
    const name = Span{ .start = @intCast(data.len), .length = "count".len };
    fresh.appendSliceAssumeCapacity("count");

    for (0..count) |index| {
        const message: u32 = @intCast(index);
        const value = bytesOf(data, batch.values.slice(), index);
        if (sums.is_error != 0) {
            outcomes[index] = 2;
            try details.append(memory, .{ .message = message, .class = .of("state-full"), .reason = sums.of.full.reason });
        } else if (beginsWith(value, "retry")) {
            outcomes[index] = 2;
            try details.append(memory, .{ .message = message, .class = .of("later"), .reason = .of("told to wait") });
        } else if (beginsWith(value, "reject")) {
            var line: [64]u8 = undefined;
            log(.warn, try std.fmt.bufPrint(&line, "rejected the message at offset {d}", .{batch.offsets.slice()[index]}));
            outcomes[index] = 3;
            try details.append(memory, .{ .message = message, .class = .of("bad"), .reason = .of("told to reject") });
        } else if (beginsWith(value, "trap")) {
            @panic("told to trap");
        } else {
            outcomes[index] = 1;
            sources.appendAssumeCapacity(message);
            const start = data.len + fresh.items.len;
            if (value) |bytes| {
                const to = fresh.addManyAsSliceAssumeCapacity(bytes.len);
                for (to, bytes) |*into, byte| into.* = if (byte >= 'a' and byte <= 'z') byte - 32 else byte;
                fresh.appendSliceAssumeCapacity(suffix);
                values.appendSliceAssumeCapacity(&.{ @intCast(start), @intCast(bytes.len + suffix.len) });
            } else {
                values.appendSliceAssumeCapacity(&.{ 0, none });
            }
            const sum_start = data.len + fresh.items.len;
            const digits = fresh.unusedCapacitySlice();
            const sum = try std.fmt.bufPrint(digits, "{d}", .{sums.of.sums.slice()[index]});
            fresh.items.len += sum.len;
            const first = if (index == 0) 0 else batch.header_ends.slice()[index - 1];
            headers.appendSliceAssumeCapacity(input_headers[first * 4 .. batch.header_ends.slice()[index] * 4]);
            headers.appendSliceAssumeCapacity(&.{ name.start, name.length, @intCast(sum_start), @intCast(sum.len) });
            header_ends.appendAssumeCapacity(@intCast(headers.items.len / 4));
        }
    }

    answer.outcomes = .of(outcomes);
    answer.details = .of(details.items);
    answer.data = .of(fresh.items);
    answer.sources = .of(sources.items);
    answer.values = .of(values.items);
    answer.header_ends = .of(header_ends.items);
    answer.headers = .of(headers.items);

    const label = [_]Label{.{ .name = .of("language"), .value = .of("zig") }};
    metrics.add("handled", "handled".len, &label, label.len, count);
}

/// Each message adds 1 to the number of its key.
fn addOne(batch: *const Batch, memory: std.mem.Allocator) !Sums {
    const most = 10_000;
    const count = batch.offsets.length;
    const keys = try memory.dupe(u32, batch.keys.slice());
    var index: usize = 0;
    while (index < keys.len) : (index += 2) {
        if (keys[index + 1] == none) @memset(keys[index..][0..2], 0);
    }
    const messages = try memory.alloc(u32, count);
    for (messages, 0..) |*message, at| message.* = @intCast(at);

    const all = try memory.alloc(i64, count);
    var sums: Sums = undefined;
    var start: usize = 0;
    while (start < count) : (start += most) {
        const some = @min(most, count - start);
        host.add(batch.data.address, batch.data.length, keys[start * 2 ..].ptr, some * 2, 0, 0, 0, 0, messages[start..].ptr, some, &sums);
        if (sums.is_error != 0) return sums;
        @memcpy(all[start..][0..some], sums.of.sums.slice());
    }
    return .{ .is_error = 0, .of = .{ .sums = .of(all) } };
}

fn config(key: []const u8) []const u8 {
    var result: OptionalText = undefined;
    host.get(key.ptr, key.len, &result);
    return if (result.is_some != 0) result.value.slice() else "";
}

fn bytesOf(data: []const u8, spans: []const u32, index: usize) ?[]const u8 {
    const start, const length = .{ spans[index * 2], spans[index * 2 + 1] };
    return if (length == none) null else data[start..][0..length];
}

fn beginsWith(value: ?[]const u8, word: []const u8) bool {
    return std.mem.startsWith(u8, value orelse return false, word);
}

/// A panic is a line of the processor's log, and a trap.
pub const panic = std.debug.FullPanic(explain);

fn explain(text: []const u8, _: ?usize) noreturn {
    log(.err, text);
    @trap();
}
