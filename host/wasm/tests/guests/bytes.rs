//! Components written byte by byte that no toolchain would make.

/// A component of these sections.
pub(crate) fn component(sections: &[Vec<u8>]) -> Vec<u8> {
    [b"\0asm\x0d\0\x01\0".to_vec(), sections.concat()].concat()
}

/// A core module of these sections.
pub(crate) fn core_module(sections: &[Vec<u8>]) -> Vec<u8> {
    [b"\0asm\x01\0\0\0".to_vec(), sections.concat()].concat()
}

pub(crate) fn section(id: u8, body: &[u8]) -> Vec<u8> {
    [vec![id], number(body.len()), body.to_vec()].concat()
}

/// A list: the number of items, then the items.
pub(crate) fn list(items: &[Vec<u8>]) -> Vec<u8> {
    [number(items.len()), items.concat()].concat()
}

pub(crate) fn number(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

pub(crate) fn name(name: &str) -> Vec<u8> {
    [number(name.len()), name.as_bytes().to_vec()].concat()
}

/// Sections that export an empty instance under a name; `instance` is its index.
pub(crate) fn exported_instance(export: &str, instance: u8) -> Vec<Vec<u8>> {
    let empty = section(5, &list(&[vec![0x01, 0x00]]));
    let export = [vec![0], name(export), vec![0x05, instance, 0x00]].concat();
    vec![empty, section(11, &list(&[export]))]
}

/// Sections that import an empty instance under a name.
pub(crate) fn imported_instance(import: &str) -> Vec<Vec<u8>> {
    let instance_type = section(7, &list(&[vec![0x42, 0x00]]));
    let import = [vec![0], name(import), vec![0x05, 0x00]].concat();
    vec![instance_type, section(10, &list(&[import]))]
}

/// Sections that hold a core module and make an instance of it.
pub(crate) fn running(module: &[u8]) -> Vec<Vec<u8>> {
    vec![
        section(1, module),
        section(2, &list(&[vec![0x00, 0x00, 0x00]])),
    ]
}

/// A core module with a memory of this many pages.
pub(crate) fn memory_module(pages: usize) -> Vec<u8> {
    let memory = [vec![0x00], number(pages)].concat();
    core_module(&[section(5, &list(&[memory]))])
}

/// A core module with a table of this many elements.
pub(crate) fn table_module(elements: usize) -> Vec<u8> {
    let table = [vec![0x70, 0x00], number(elements)].concat();
    core_module(&[section(4, &list(&[table]))])
}

/// A core module whose start function never ends.
pub(crate) fn endless_start_module() -> Vec<u8> {
    let body = vec![0x00, 0x03, 0x40, 0x0c, 0x00, 0x0b, 0x0b];
    let body = [number(body.len()), body].concat();
    core_module(&[
        section(1, &list(&[vec![0x60, 0x00, 0x00]])),
        section(3, &list(&[vec![0x00]])),
        section(8, &[0x00]),
        section(10, &list(&[body])),
    ])
}

/// A few kilobytes that keep Cranelift busy for minutes: loops within loops over many variables.
pub(crate) fn compile_bomb_module(size: usize) -> Vec<u8> {
    let locals = list(&[[number(size), vec![0x7e]].concat()]);
    let loops = [0x03, 0x40].repeat(size);
    let sums = (1..=size).flat_map(|local| {
        let (left, right) = (1 + (local * 31) % size, 1 + (local * 17) % size);
        [
            [vec![0x20], number(left)].concat(),
            [vec![0x20], number(right)].concat(),
            [vec![0x7c, 0x21], number(local)].concat(),
        ]
        .concat()
    });
    let ends = [0x20, 0x00, 0x0d, 0x00, 0x0b].repeat(size);
    let body = [locals, loops, sums.collect(), ends, vec![0x0b]].concat();
    let body = [number(body.len()), body].concat();
    core_module(&[
        section(1, &list(&[vec![0x60, 0x01, 0x7f, 0x00]])),
        section(3, &list(&[vec![0x00]])),
        section(10, &list(&[body])),
    ])
}
