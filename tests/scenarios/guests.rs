//! Components that no compiler would produce.

use guest_artifacts as guests;

/// Loops nested this deep, over as many locals, occupy an optimising compiler for minutes, with a
/// few KiB of valid code.
const BOMB_DEPTH: u32 = 3_000;

/// A good component with one more core module inside, which is small, valid and very slow to
/// compile.
pub(crate) fn compile_bomb() -> Vec<u8> {
    let mut component = guests::UPPERCASE.to_vec();
    push_section(&mut component, 1, &bomb_module());
    component
}

fn bomb_module() -> Vec<u8> {
    let mut module = b"\0asm\x01\0\0\0".to_vec();
    push_section(&mut module, 1, &[1, 0x60, 0, 0]);
    push_section(&mut module, 3, &[1, 0]);
    let body = bomb_body();
    let code = [number(1), number(body.len() as u32), body].concat();
    push_section(&mut module, 10, &code);
    module
}

/// Each loop changes its own local and may repeat, so every local is live in every loop.
fn bomb_body() -> Vec<u8> {
    const I64: u8 = 0x7e;
    let mut body = [vec![1], number(BOMB_DEPTH), vec![I64]].concat();
    for local in (0..BOMB_DEPTH).map(number) {
        body.extend([0x03, 0x40, 0x20]);
        body.extend(&local);
        body.extend([0x42, 1, 0x7c, 0x21]);
        body.extend(&local);
    }
    for local in (0..BOMB_DEPTH).rev().map(number) {
        body.push(0x20);
        body.extend(&local);
        body.extend([0xa7, 0x0d, 0, 0x0b]);
    }
    body.push(0x0b);
    body
}

fn push_section(into: &mut Vec<u8>, id: u8, content: &[u8]) {
    into.push(id);
    into.extend(number(content.len() as u32));
    into.extend(content);
}

/// Unsigned LEB128, as WebAssembly has it.
fn number(mut value: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}
