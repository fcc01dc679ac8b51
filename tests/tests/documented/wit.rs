//! The page of the contract: every interface, function and type of `wit/`, with the words that stand beside them there.

use std::fmt::Write as _;
use std::fs;

use millrace_tests::tree::repository;
use wit_parser::{
    Function, Interface, InterfaceId, Resolve, SourceMap, Type, TypeDef, TypeDefKind, WorldItem,
};

/// Interfaces that all others refer to come first.
const FIRST: &str = "types";

const HEAD: &str = "# The contract in WIT

What the host and its components say to each other, from the files in `wit/`, which are what toolchains read. Generated from them by
`tests/tests/documented.rs`. [guests/README.md](../guests/README.md) and the other [languages](languages.md) have the SDKs that hide most of it.

";

/// The page, from the files of the contract.
pub(crate) fn page() -> String {
    let mut sources = SourceMap::new();
    let files = fs::read_dir(repository().join("wit")).expect("the contract is there");
    for file in files.flatten() {
        let text = fs::read_to_string(file.path()).expect("it is text");
        sources.push_str(&file.file_name().to_string_lossy(), text);
    }
    let contract = sources.parse().map_err(|(_, error)| error);
    let mut resolve = Resolve::default();
    let package = resolve.push_group(contract.expect("the contract is WIT"));
    let package = &resolve.packages[package.expect("it stands on its own")];
    let mut page = HEAD.to_owned();
    let _ = writeln!(page, "The package is `{}`.", package.name);
    if let Some(words) = &package.docs.contents {
        let _ = writeln!(page, "\n{}", paragraphs(words));
    }
    worlds(&resolve, package.worlds.values().copied(), &mut page);
    let mut interfaces: Vec<(&String, InterfaceId)> = package
        .interfaces
        .iter()
        .map(|(name, id)| (name, *id))
        .collect();
    interfaces.sort_by_key(|(name, _)| (*name != FIRST, *name));
    for (name, id) in interfaces {
        let _ = writeln!(page, "\n## {name}");
        interface(&resolve, &resolve.interfaces[id], &mut page);
    }
    page
}

fn worlds(resolve: &Resolve, worlds: impl Iterator<Item = wit_parser::WorldId>, page: &mut String) {
    *page += "\n| world | for | exports | may import |\n|---|---|---|---|\n";
    let mut rows: Vec<String> = worlds
        .map(|id| {
            let world = &resolve.worlds[id];
            let names = |items: &mut dyn Iterator<Item = &WorldItem>| {
                let names: Vec<String> = items.filter_map(|item| linked(resolve, item)).collect();
                match names.is_empty() {
                    true => "-".to_owned(),
                    false => names.join(", "),
                }
            };
            format!(
                "| `{}` | {} | {} | {} |\n",
                world.name,
                sentence(&world.docs.contents),
                names(&mut world.exports.values()),
                names(&mut world.imports.values())
            )
        })
        .collect();
    rows.sort();
    page.extend(rows);
}

fn linked(resolve: &Resolve, item: &WorldItem) -> Option<String> {
    let WorldItem::Interface { id, .. } = item else {
        return None;
    };
    let name = resolve.interfaces[*id].name.as_deref()?;
    Some(format!("[{name}](#{name})"))
}

fn interface(resolve: &Resolve, interface: &Interface, page: &mut String) {
    if let Some(words) = &interface.docs.contents {
        let _ = writeln!(page, "\n{}", paragraphs(words));
    }
    for function in interface.functions.values() {
        let _ = writeln!(page, "\n### {}\n", function.name);
        let _ = writeln!(page, "```wit\n{}\n```", signature(resolve, function));
        if let Some(words) = &function.docs.contents {
            let _ = writeln!(page, "\n{}", paragraphs(words));
        }
    }
    for id in interface.types.values() {
        let defined = &resolve.types[*id];
        let name = defined.name.as_deref().unwrap_or_default();
        if is_of_another(resolve, defined) {
            continue;
        }
        let _ = writeln!(page, "\n### {} `{name}`\n", defined.kind.as_str());
        if let Some(words) = &defined.docs.contents {
            let _ = writeln!(page, "{}\n", paragraphs(words));
        }
        parts(resolve, &defined.kind, page);
    }
}

/// Whether it only brings another interface's type in.
fn is_of_another(resolve: &Resolve, defined: &TypeDef) -> bool {
    match &defined.kind {
        TypeDefKind::Type(Type::Id(id)) => resolve.types[*id].name == defined.name,
        _ => false,
    }
}

fn parts(resolve: &Resolve, kind: &TypeDefKind, page: &mut String) {
    match kind {
        TypeDefKind::Record(record) => {
            *page += "| field | type | meaning |\n|---|---|---|\n";
            for field in &record.fields {
                let (name, words) = (&field.name, sentence(&field.docs.contents));
                let _ = writeln!(
                    page,
                    "| `{name}` | `{}` | {words} |",
                    shown(resolve, &field.ty)
                );
            }
        }
        TypeDefKind::Variant(variant) => {
            *page += "| case | with | meaning |\n|---|---|---|\n";
            for case in &variant.cases {
                let with = case
                    .ty
                    .as_ref()
                    .map(|ty| format!("`{}`", shown(resolve, ty)));
                let (with, words) = (with.unwrap_or_default(), sentence(&case.docs.contents));
                let _ = writeln!(page, "| `{}` | {with} | {words} |", case.name);
            }
        }
        TypeDefKind::Enum(cases) => {
            let names: Vec<String> = cases
                .cases
                .iter()
                .map(|case| format!("`{}`", case.name))
                .collect();
            let _ = writeln!(page, "One of {}.", names.join(", "));
        }
        TypeDefKind::Type(ty) => {
            let _ = writeln!(page, "`{}`", shown(resolve, ty));
        }
        other => {
            let _ = writeln!(page, "`{}`", shown_kind(resolve, other));
        }
    }
}

fn signature(resolve: &Resolve, function: &Function) -> String {
    let parameter = |parameter: &wit_parser::Param| {
        format!("{}: {}", parameter.name, shown(resolve, &parameter.ty))
    };
    let parameters: Vec<String> = function.params.iter().map(parameter).collect();
    let result = function.result.as_ref();
    let result = result.map_or_else(String::new, |ty| format!(" -> {}", shown(resolve, ty)));
    format!("{}: func({}){result}", function.name, parameters.join(", "))
}

/// A type as WIT writes it.
fn shown(resolve: &Resolve, ty: &Type) -> String {
    let word = match ty {
        Type::Bool => "bool",
        Type::U8 => "u8",
        Type::U16 => "u16",
        Type::U32 => "u32",
        Type::U64 => "u64",
        Type::S8 => "s8",
        Type::S16 => "s16",
        Type::S32 => "s32",
        Type::S64 => "s64",
        Type::F32 => "f32",
        Type::F64 => "f64",
        Type::Char => "char",
        Type::String => "string",
        Type::ErrorContext => "error-context",
        Type::Id(id) => {
            let defined = &resolve.types[*id];
            return match &defined.name {
                Some(name) => name.clone(),
                None => shown_kind(resolve, &defined.kind),
            };
        }
    };
    word.to_owned()
}

fn shown_kind(resolve: &Resolve, kind: &TypeDefKind) -> String {
    let of = |ty: &Option<Type>| {
        ty.as_ref()
            .map_or_else(|| "_".to_owned(), |ty| shown(resolve, ty))
    };
    match kind {
        TypeDefKind::Option(ty) => format!("option<{}>", shown(resolve, ty)),
        TypeDefKind::List(ty) => format!("list<{}>", shown(resolve, ty)),
        TypeDefKind::Tuple(tuple) => {
            let types: Vec<String> = tuple.types.iter().map(|ty| shown(resolve, ty)).collect();
            format!("tuple<{}>", types.join(", "))
        }
        TypeDefKind::Result(result) => match (&result.ok, &result.err) {
            (None, None) => "result".to_owned(),
            (ok, None) => format!("result<{}>", of(ok)),
            (ok, err) => format!("result<{}, {}>", of(ok), of(err)),
        },
        TypeDefKind::Type(ty) => shown(resolve, ty),
        other => panic!(
            "the contract has a {}; say here how it is shown",
            other.as_str()
        ),
    }
}

/// Words with their line ends inside of paragraphs removed.
fn paragraphs(words: &str) -> String {
    let paragraphs = words.trim().split("\n\n");
    let joined = paragraphs.map(|one| one.lines().map(str::trim).collect::<Vec<_>>().join(" "));
    joined.collect::<Vec<_>>().join("\n\n")
}

/// Words for the cell of a table.
fn sentence(words: &Option<String>) -> String {
    let words = words.as_deref().unwrap_or_default();
    paragraphs(words).replace("\n\n", " ").replace('|', "\\|")
}

#[test]
fn types_are_written_as_in_wit() {
    let text = "package a:b; interface c {
        record r { x: option<list<u8>> }
        f: func(a: r, b: tuple<u32, string>) -> result<_, string>;
        g: func() -> result<list<s64>>;
    }";
    let mut resolve = Resolve::default();
    let package = resolve.push_source("c.wit", text).expect("WIT");
    let id = resolve.packages[package].interfaces["c"];
    let functions = &resolve.interfaces[id].functions;
    let signatures: Vec<String> = functions
        .values()
        .map(|function| signature(&resolve, function))
        .collect();
    assert_eq!(
        signatures,
        [
            "f: func(a: r, b: tuple<u32, string>) -> result<_, string>",
            "g: func() -> result<list<s64>>"
        ]
    );
}
