//! The pages in Markdown, as their checks read them: blocks of code, prose, code spans and tables.

use std::path::{Path, PathBuf};

/// A page.
pub struct Page {
    /// Path from the root of the repository.
    pub path: PathBuf,
    pub text: String,
}

/// A block of code.
pub struct Block {
    /// What follows the opening fence.
    pub language: String,
    pub code: String,
    /// The HTML comment directly above it.
    pub mark: Option<String>,
    /// Line of the opening fence, from 1.
    pub line: usize,
}

impl Block {
    /// Whether the page says that the block is not run, and why.
    pub fn is_not_run(&self) -> bool {
        let reason = self.mark.as_deref().and_then(|mark| mark.strip_prefix("not run: "));
        reason.is_some_and(|reason| !reason.is_empty())
    }

    /// Whether the page says that a job over this training file fails.
    pub fn is_refused(&self) -> bool {
        self.mark.as_deref() == Some("refused")
    }
}

/// A table: rows of cells, the header first.
pub type Table = Vec<Vec<String>>;

impl Page {
    /// Reads a page by its path from the root of the repository.
    pub fn read(path: &str) -> Self {
        let text = std::fs::read_to_string(root().join(path)).expect("a readable page");
        Self { path: PathBuf::from(path), text }
    }

    /// The page's name for messages.
    pub fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// Its blocks of code.
    pub fn blocks(&self) -> Vec<Block> {
        let mut blocks: Vec<Block> = Vec::new();
        let (mut is_inside, mut above) = (false, "");
        for (index, line) in self.text.lines().enumerate() {
            match line.strip_prefix("```") {
                Some(language) if !is_inside => {
                    let mark =
                        above.strip_prefix("<!-- ").and_then(|text| text.strip_suffix(" -->"));
                    blocks.push(Block {
                        language: language.to_owned(),
                        code: String::new(),
                        mark: mark.map(str::to_owned),
                        line: index + 1,
                    });
                    is_inside = true;
                }
                Some(_end) => is_inside = false,
                None => {
                    if let Some(block) = blocks.last_mut().filter(|_| is_inside) {
                        block.code.push_str(line);
                        block.code.push('\n');
                    }
                }
            }
            above = line;
        }
        assert!(!is_inside, "{}: the last block has no end", self.name());
        blocks
    }

    /// Its lines outside of blocks of code, with their numbers.
    pub fn prose(&self) -> Vec<(usize, &str)> {
        let mut is_inside = false;
        let outside = |(index, line): (usize, _)| {
            if str::starts_with(line, "```") {
                is_inside = !is_inside;
                return None;
            }
            (!is_inside).then_some((index + 1, line))
        };
        self.text.lines().enumerate().filter_map(outside).collect()
    }

    /// Its tables.
    pub fn tables(&self) -> Vec<Table> {
        let mut tables: Vec<Table> = Vec::new();
        let mut was_row = false;
        for (_number, line) in self.prose() {
            let row = line.strip_prefix('|').and_then(|line| line.strip_suffix('|'));
            if let Some(row) = row {
                if !was_row {
                    tables.push(Vec::new());
                }
                let cells = row.split('|').map(|cell| cell.trim().to_owned());
                let cells: Vec<String> = cells.collect();
                if !cells.iter().all(|cell| cell == "---") {
                    tables.last_mut().expect("it began").push(cells);
                }
            }
            was_row = row.is_some();
        }
        tables
    }

    /// The table with this header cell in this column.
    pub fn table(&self, column: usize, header: &str) -> Table {
        let tables = self.tables().into_iter();
        let mut found = tables.filter(|table| table[0].get(column).is_some_and(|it| it == header));
        found.next().unwrap_or_else(|| panic!("{}: no table with {header:?}", self.name()))
    }
}

/// What stands between backticks.
pub fn code_spans(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// The root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// README and the pages of `docs/`.
pub fn user_pages() -> Vec<Page> {
    let mut names: Vec<String> = std::fs::read_dir(root().join("docs"))
        .expect("a readable folder")
        .map(|entry| entry.expect("a readable entry").file_name().to_string_lossy().into_owned())
        .filter(|name| name.ends_with(".md"))
        .map(|name| format!("docs/{name}"))
        .collect();
    names.sort();
    names.insert(0, "README.md".to_owned());
    assert!(names.len() > 10, "the pages were not found");
    names.iter().map(|name| Page::read(name)).collect()
}

/// Every page, those for developers among them.
pub fn all_pages() -> Vec<Page> {
    let mut pages = user_pages();
    pages.extend(["CONTRIBUTING.md", "benches/README.md"].map(Page::read));
    pages
}

#[test]
fn a_page_is_read_into_blocks_prose_and_tables() {
    let text = "# A page\n<!-- not run: why -->\n```sh\nls `pwd`\n```\nA `span`.\n\n| a | b |\n|---|---|\n| 1 | `2` |\n";
    let page = Page { path: PathBuf::from("page.md"), text: text.to_owned() };
    let blocks = page.blocks();
    assert_eq!(blocks.len(), 1);
    assert!(blocks[0].is_not_run() && blocks[0].language == "sh" && blocks[0].line == 3);
    assert_eq!(blocks[0].code, "ls `pwd`\n");
    let prose: Vec<&str> = page.prose().into_iter().map(|(_number, line)| line).collect();
    assert!(!prose.contains(&"ls `pwd`") && prose.contains(&"A `span`."));
    assert_eq!(page.table(1, "b"), [["a", "b"], ["1", "`2`"]]);
    assert_eq!(code_spans("| 1 | `2` and `3` |"), ["2", "3"]);
}
