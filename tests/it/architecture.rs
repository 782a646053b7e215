//! The shape of the source: which room may import which, and where `unsafe` may stand.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The top-level rooms from the outermost inwards. A room imports only those that stand after it; those
/// of one line do not import each other. `cli` wires everything together. The executor takes jobs from
/// the queue, so it stands above it.
const STAGES: &[&[&str]] = &[
    &["cli"],
    &["http"],
    &["validate"],
    &["executor"],
    &["queue", "webhooks", "export"],
    &["store", "blobs"],
    &["serve"],
    &["train"],
    &["artifacts"],
    &["base_models", "config", "graders"],
    &["domain"],
    &["dataset", "device"],
    &["util"],
];

/// The rooms of `train`, in the same way.
const TRAIN: &[&[&str]] = &[
    &["run"],
    &["engine"],
    &["decoder"],
    &["data"],
    &["model"],
    &["backend"],
    &["device"],
    &["protocol", "rng"],
];

/// A folder whose rooms have an order.
struct House {
    /// Its module path below the crate.
    path: &'static [&'static str],
    /// Its rooms, from the outermost inwards.
    order: &'static [&'static [&'static str]],
}

const HOUSES: &[House] =
    &[House { path: &[], order: STAGES }, House { path: &["train"], order: TRAIN }];

/// The only folder whose code may be `unsafe`.
const UNSAFE_FOLDER: &str = "train/backend/cpu";

#[test]
fn a_room_imports_only_what_stands_below_it() {
    let mut violations = Vec::new();
    for (path, code) in sources() {
        let module = module_of(&path);
        for house in HOUSES {
            let Some(room) = house.room_of(&module) else { continue };
            for imported in imports(&code, &module) {
                let Some(other) = house.room_of(&imported) else { continue };
                if !house.may_import(room, other) {
                    violations.push(format!("src/{}: imports {imported:?}", path.display()));
                }
            }
        }
    }
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

#[test]
fn every_room_has_its_place_in_the_order() {
    for (path, _code) in sources() {
        let module = module_of(&path);
        for house in HOUSES {
            if let Some(room) = house.room_of(&module) {
                let is_placed = house.rank(room).is_some();
                assert!(is_placed, "src/{}: add {room} to the order of rooms", path.display());
            }
        }
    }
}

/// Circles of files that stay, with the reason.
const CIRCLES: &[(&[&str], &str)] = &[
    (
        &["train::decoder", "train::decoder::adapter"],
        "`Decoder` is in `mod.rs`; it reads with an adapter, and an adapter is made for a decoder",
    ),
    (
        &[
            "train::model::chat_template::jinja::arguments",
            "train::model::chat_template::jinja::dict",
            "train::model::chat_template::jinja::items",
            "train::model::chat_template::jinja::list",
            "train::model::chat_template::jinja::object",
            "train::model::chat_template::jinja::value",
        ],
        "a value of a template is a list, a dictionary or an object, and these hold values",
    ),
];

#[test]
fn no_files_import_each_other_in_a_circle() {
    let files = sources();
    let modules: BTreeSet<Vec<String>> = files.iter().map(|(path, _)| module_of(path)).collect();
    let mut edges: BTreeMap<Vec<String>, BTreeSet<Vec<String>>> = BTreeMap::new();
    for (path, code) in &files {
        let module = module_of(path);
        let code = without_tests(code);
        let children = modules
            .iter()
            .filter(|other| other.split_last().is_some_and(|(_, room)| room == module));
        let used = children.filter(|child| child.last().is_some_and(|name| uses_child(code, name)));
        let mut imported = imports(code, &module);
        imported.extend(used.cloned());
        let targets = imported.into_iter().filter_map(|path| file_of(&path, &modules));
        edges.entry(module.clone()).or_default().extend(targets.filter(|to| *to != module));
    }
    let mut unknown = Vec::new();
    let mut met = BTreeSet::new();
    for circle in circles(&edges) {
        let names: Vec<String> = circle.iter().map(|module| module.join("::")).collect();
        if CIRCLES.iter().any(|(known, _reason)| names == *known) {
            met.insert(names);
            continue;
        }
        for module in &circle {
            for imported in edges[module].intersection(&circle) {
                unknown.push(format!("{} imports {}", module.join("::"), imported.join("::")));
            }
        }
    }
    assert!(unknown.is_empty(), "circles of files:\n{}", unknown.join("\n"));
    for (circle, reason) in CIRCLES {
        let names: Vec<String> = circle.iter().map(|&name| name.to_owned()).collect();
        assert!(met.contains(&names) && !reason.is_empty(), "{names:?} is no circle any more");
    }
}

#[test]
fn unsafe_code_stands_only_in_the_cpu_kernels() {
    for (path, code) in sources() {
        if path.starts_with(UNSAFE_FOLDER) {
            continue;
        }
        let line = code.lines().position(|line| has_word(line, "unsafe"));
        assert!(line.is_none(), "src/{}:{}: unsafe", path.display(), line.unwrap_or_default() + 1);
    }
}

#[test]
fn the_search_finds_imports_however_they_are_written() {
    let code = without_comments(
        "use crate::store::{Store, sqlite::{self, rows}};\n\
         // use crate::commented;\n\
         use crate::{domain::job::Job, queue::{self, Queue}};\n\
         fn f() -> crate::serve::Answer { \"see crate\" }\n\
         use super::super::train::Engine; use super::rows;\n\
         mod tests { use super::super::beside; }\n",
    );
    let module = ["http", "files"].map(str::to_owned);
    let found: Vec<String> = imports(&code, &module).iter().map(|path| path.join("::")).collect();
    let expected = [
        "domain::job::Job",
        "http::beside",
        "http::rows",
        "queue",
        "queue::Queue",
        "serve::Answer",
        "store::Store",
        "store::sqlite",
        "store::sqlite::rows",
        "train::Engine",
    ];
    assert_eq!(found, expected);
    assert!(has_word("unsafe {", "unsafe") && !has_word("deny(unsafe_code)", "unsafe"));
}

#[test]
fn a_circle_is_found_however_long_it_is() {
    let module = |name: &str| name.split("::").map(str::to_owned).collect::<Vec<_>>();
    let edges: BTreeMap<_, _> = [("a", "a::b"), ("a::b", "a::c"), ("a::c", "a"), ("d", "a")]
        .map(|(from, to)| (module(from), BTreeSet::from([module(to)])))
        .into();
    let found = circles(&edges);
    assert_eq!(found, [BTreeSet::from(["a", "a::b", "a::c"].map(module))]);
    let code =
        "pub use self::b::Door;\nuse self::c::Used;\n#[cfg(test)]\nmod tests { use crate::d; }";
    let seen = imports(without_tests(code), &module("a"));
    assert_eq!(seen, BTreeSet::from([module("a::c::Used")]));
    assert!(uses_child("fn f() { b::g() }", "b") && !uses_child("pub use b::Door;", "b"));
    assert!(!uses_child("use super::b::g;", "b") && !uses_child("ab::g()", "b"));
}

#[test]
fn the_order_refuses_what_looks_upwards() {
    let [stages, train] = HOUSES else { panic!("two houses") };
    assert!(stages.may_import("executor", "queue") && !stages.may_import("queue", "executor"));
    assert!(stages.may_import("http", "domain") && !stages.may_import("domain", "http"));
    assert!(!stages.may_import("store", "blobs") && !stages.may_import("serve", "cli"));
    assert!(train.may_import("run", "engine") && !train.may_import("backend", "model"));
    assert!(!train.may_import("data", "unknown"));
    let decoder = ["train", "decoder", "pack"].map(str::to_owned);
    assert_eq!(train.room_of(&decoder), Some("decoder"));
    assert_eq!(stages.room_of(&decoder), Some("train"));
    assert_eq!(train.room_of(&decoder[..1]), None);
}

/// Every source file: its path below `src`, and its text without comments.
fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a readable folder") {
            let path = entry.expect("a readable entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a readable source file");
                let below = path.strip_prefix(&root).expect("below the root").to_owned();
                found.push((below, without_comments(&text)));
            }
        }
    }
    assert!(found.len() > 20, "the sources were not found");
    found
}

/// Blanks what follows `//` on each line. Text that holds `://` keeps it.
fn without_comments(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    for line in text.lines() {
        let comment = line
            .match_indices("//")
            .map(|(at, _slashes)| at)
            .find(|at| !line[..*at].ends_with(':'));
        code.push_str(&line[..comment.unwrap_or(line.len())]);
        code.push('\n');
    }
    code
}

impl House {
    /// The room that a module lies in; none for the house itself, and for what is not in it.
    fn room_of<'a>(&self, module: &'a [String]) -> Option<&'a str> {
        let inside = module.strip_prefix(
            self.path.iter().map(|&name| name.to_owned()).collect::<Vec<_>>().as_slice(),
        )?;
        inside.first().map(String::as_str)
    }

    fn rank(&self, room: &str) -> Option<usize> {
        self.order.iter().position(|rooms| rooms.contains(&room))
    }

    fn may_import(&self, room: &str, imported: &str) -> bool {
        if room == imported {
            return true;
        }
        match (self.rank(room), self.rank(imported)) {
            (Some(from), Some(to)) => from < to,
            _ => false,
        }
    }
}

/// The module path of a file; empty for `lib.rs` and `main.rs`.
fn module_of(path: &Path) -> Vec<String> {
    let mut parts: Vec<String> =
        path.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if matches!(parts.last().map(String::as_str), Some("mod" | "lib" | "main")) {
        parts.pop();
    }
    parts
}

/// The paths that a file names, from the crate's root: after `crate::`, or after `super::` as seen from
/// `module`, in a `use` or anywhere else.
fn imports(code: &str, module: &[String]) -> BTreeSet<Vec<String>> {
    let mut found = BTreeSet::new();
    let mut at = 0;
    while let Some(next) = next_path(code, at) {
        at = next + 1;
        let shows_a_child = is_public_use(&code[..next]) && code[next..].starts_with("self::");
        if shows_a_child {
            continue;
        }
        let is_inline_test = code[..next].contains("mod tests {");
        let mut inside = module.to_vec();
        if is_inline_test {
            inside.push("tests".to_owned());
        }
        read_paths(&code[next..], &mut inside.clone(), &mut found);
    }
    found
}

/// A file's code without its inline tests.
fn without_tests(code: &str) -> &str {
    let end = code.find("#[cfg(test)]\nmod tests {").unwrap_or(code.len());
    &code[..end]
}

/// Whether what follows this code is what a `pub use` names.
fn is_public_use(before: &str) -> bool {
    let statement = before.rsplit([';', '}', '\n']).next().unwrap_or_default().trim_start();
    statement.starts_with("pub") && statement.ends_with("use ")
}

/// Whether a file uses a child module by its bare name. What it shows of it (`pub use`) is no use.
fn uses_child(code: &str, name: &str) -> bool {
    let path = format!("{name}::");
    code.match_indices(&path).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        before.is_none_or(|c| !c.is_alphanumeric() && !matches!(c, '_' | ':' | '.' | '$'))
            && !is_public_use(&code[..at])
    })
}

/// The file that a path leads into: its longest beginning that is a module.
fn file_of(path: &[String], modules: &BTreeSet<Vec<String>>) -> Option<Vec<String>> {
    (1..=path.len())
        .rev()
        .map(|length| path[..length].to_vec())
        .find(|module| modules.contains(module))
}

/// The sets of modules that reach each other, of two modules or more.
fn circles(edges: &BTreeMap<Vec<String>, BTreeSet<Vec<String>>>) -> Vec<BTreeSet<Vec<String>>> {
    let reachable = |from: &Vec<String>| {
        let mut seen: BTreeSet<&Vec<String>> = BTreeSet::new();
        let mut waiting: Vec<&Vec<String>> = edges.get(from).into_iter().flatten().collect();
        while let Some(module) = waiting.pop() {
            if seen.insert(module) {
                waiting.extend(edges.get(module).into_iter().flatten());
            }
        }
        seen
    };
    let reached: BTreeMap<&Vec<String>, BTreeSet<&Vec<String>>> =
        edges.keys().map(|module| (module, reachable(module))).collect();
    let mut found: BTreeSet<BTreeSet<Vec<String>>> = BTreeSet::new();
    for (module, reaches) in &reached {
        let is_mutual =
            |other: &&&Vec<String>| reached.get(**other).is_some_and(|back| back.contains(module));
        let circle: BTreeSet<Vec<String>> =
            reaches.iter().filter(is_mutual).map(|other| (*other).clone()).collect();
        if circle.len() > 1 {
            found.insert(circle);
        }
    }
    found.into_iter().collect()
}

/// Where the next `crate::`, `super::` or `self::` begins that no other path goes on with.
fn next_path(code: &str, from: usize) -> Option<usize> {
    let rest = &code[from..];
    let starts =
        ["crate::", "super::", "self::"].into_iter().flat_map(|word| rest.match_indices(word));
    let is_first = |at: &usize| {
        let before = code[..*at].chars().next_back();
        // `pub(in crate::room)` says who may see an item, not what is used.
        let is_visibility = code[..*at].ends_with("(in ");
        !is_visibility
            && before.is_none_or(|c| !c.is_alphanumeric() && !matches!(c, '_' | ':' | '$'))
    };
    starts.map(|(at, _word)| from + at).filter(is_first).min()
}

/// Reads one path or tree of paths that begins with `crate::` or `super::`.
fn read_paths(text: &str, module: &mut Vec<String>, found: &mut BTreeSet<Vec<String>>) {
    let mut rest = text;
    if let Some(after) = rest.strip_prefix("crate::") {
        module.clear();
        rest = after;
    }
    if let Some(after) = rest.strip_prefix("self::") {
        rest = after;
    }
    while let Some(after) = rest.strip_prefix("super::") {
        module.pop();
        rest = after;
    }
    read_tree(rest, module, found);
}

/// Reads the names after a prefix, through braces; what follows.
fn read_tree<'a>(text: &'a str, prefix: &[String], found: &mut BTreeSet<Vec<String>>) -> &'a str {
    let mut text = text.trim_start();
    if let Some(mut group) = text.strip_prefix('{') {
        loop {
            group = group.trim_start().trim_start_matches(',').trim_start();
            if let Some(after) = group.strip_prefix('}') {
                return after;
            }
            let after = read_tree(group, prefix, found);
            if after.len() == group.len() {
                return after;
            }
            group = after;
        }
    }
    let Some(word) = first_word(text) else { return text };
    text = &text[word.len()..];
    let mut path = prefix.to_vec();
    if word != "self" {
        path.push(word);
    }
    match text.strip_prefix("::") {
        Some(after) => read_tree(after, &path, found),
        None => {
            found.insert(path);
            match text.trim_start().strip_prefix("as ") {
                Some(alias) => alias.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_'),
                None => text,
            }
        }
    }
}

fn first_word(text: &str) -> Option<String> {
    let word: String = text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!word.is_empty()).then_some(word)
}

fn has_word(line: &str, word: &str) -> bool {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|found| found == word)
}
