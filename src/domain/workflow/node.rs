//! A YAML text as a tree that knows where each part stands.
//!
//! Built from the parser's events with a stack of its own, so that no nesting
//! in a file deepens ours; aliases are copied within a budget.

use saphyr_parser::{Event, Marker, Parser, ScalarStyle};

use super::Position;
use super::diagnostic::Diagnostic;

/// The longest file, in bytes.
const MAX_BYTES: usize = 256 * 1024;
/// The most values in a file, copies made by aliases included.
const MAX_NODES: usize = 20_000;
/// The deepest nesting.
const MAX_DEPTH: usize = 24;

/// A value with its place.
#[derive(Debug, Clone)]
pub(super) struct Node {
    /// Where it begins; an absent value stands where its key stands.
    pub(super) at: Position,
    pub(super) content: Content,
}

#[derive(Debug, Clone)]
pub(super) enum Content {
    /// Nothing, `~` or `null`.
    Null,
    /// `quoted` texts are never numbers.
    Scalar {
        text: String,
        quoted: bool,
    },
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// One `key: value`.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_at: Position,
    pub(super) value: Node,
}

impl Node {
    pub(super) fn entries(&self) -> &[Entry] {
        match &self.content {
            Content::Map(entries) => entries,
            Content::Null | Content::Scalar { .. } | Content::List(_) => &[],
        }
    }

    /// The items of a list; anything else is a list of itself, null of none.
    pub(super) fn one_or_many(&self) -> &[Node] {
        match &self.content {
            Content::List(items) => items,
            Content::Null => &[],
            Content::Scalar { .. } | Content::Map(_) => std::slice::from_ref(self),
        }
    }

    /// The value of `key`; null counts as absent.
    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        let entry = self.entries().iter().find(|entry| entry.key == key)?;
        (!matches!(entry.value.content, Content::Null)).then_some(&entry.value)
    }

    /// The text of a scalar.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.content {
            Content::Scalar { text, .. } => Some(text),
            Content::Null | Content::List(_) | Content::Map(_) => None,
        }
    }

    /// What it is, in words.
    pub(super) fn kind(&self) -> &'static str {
        match &self.content {
            Content::Null => "nothing",
            Content::Scalar { text, quoted: false } if matches!(text.as_str(), "true" | "false") => {
                "true or false"
            }
            Content::Scalar { text, quoted: false } if text.parse::<f64>().is_ok() => "a number",
            Content::Scalar { .. } => "a text",
            Content::List(_) => "a list",
            Content::Map(_) => "a mapping",
        }
    }

    fn size(&self) -> usize {
        match &self.content {
            Content::Null | Content::Scalar { .. } => 1,
            Content::List(items) => 1 + items.iter().map(Node::size).sum::<usize>(),
            Content::Map(entries) => 1 + entries.iter().map(|entry| 1 + entry.value.size()).sum::<usize>(),
        }
    }

    fn depth(&self) -> usize {
        match &self.content {
            Content::Null | Content::Scalar { .. } => 0,
            Content::List(items) => 1 + items.iter().map(Node::depth).max().unwrap_or(0),
            Content::Map(entries) => 1 + entries.iter().map(|entry| entry.value.depth()).max().unwrap_or(0),
        }
    }
}

/// A list or mapping that is still open.
struct Open {
    at: Position,
    anchor: usize,
    key: Option<(String, Position)>,
    content: Content,
}

struct Builder<'d> {
    stack: Vec<Open>,
    root: Option<Node>,
    /// Finished values with an anchor, by its number.
    anchors: Vec<(usize, Node)>,
    nodes: usize,
    diagnostics: &'d mut Vec<Diagnostic>,
}

/// The tree of `source`; `None` when it is no YAML or holds nothing. What is wrong goes to `diagnostics`.
pub(super) fn read(source: &str, diagnostics: &mut Vec<Diagnostic>) -> Option<Node> {
    let start = Position { line: 1, column: 1 };
    if source.len() > MAX_BYTES {
        diagnostics.push(Diagnostic::error(start, format!("the file is longer than {MAX_BYTES} bytes")));
        return None;
    }
    let before = diagnostics.len();
    let lines = Lines::of(source);
    let mut documents = 0;
    let mut builder = Builder { stack: Vec::new(), root: None, anchors: Vec::new(), nodes: 0, diagnostics };
    for event in Parser::new_from_str(source) {
        let (event, span) = match event {
            Ok(event) => event,
            Err(error) => {
                let at = lines.position(error.marker());
                builder.diagnostics.push(explain(error.info(), at, source));
                return None;
            }
        };
        let at = lines.position(&span.start);
        let step = match event {
            Event::DocumentStart(_) => {
                documents += 1;
                match documents {
                    1 => Ok(()),
                    _ => Err(Diagnostic::error(at, "a second document in one file")
                        .hint("write one workflow per file; remove `---` and what follows it")),
                }
            }
            event => builder.on(event, at),
        };
        if let Err(diagnostic) = step {
            builder.diagnostics.push(diagnostic);
            return None;
        }
    }
    let root = builder.root.take();
    match root {
        Some(Node { content: Content::Null, .. }) | None => {
            if diagnostics.len() == before {
                let hint = "begin with `name:`, `model:` and `steps:`; `refit init` writes a whole one";
                diagnostics.push(Diagnostic::error(start, "the file is empty").hint(hint));
            }
            None
        }
        root => root,
    }
}

impl Builder<'_> {
    fn on(&mut self, event: Event<'_>, at: Position) -> Result<(), Diagnostic> {
        let tagged = |tag: &saphyr_parser::Tag| {
            Diagnostic::error(at, format!("the tag `{tag}` means nothing here"))
                .hint("remove it; quote a text with '…'")
        };
        match event {
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => Ok(()),
            Event::Scalar(text, style, anchor, tag) => {
                if let Some(tag) = tag {
                    return Err(tagged(&tag));
                }
                let quoted = style != ScalarStyle::Plain;
                let content = match text.as_ref() {
                    "" | "~" | "null" if !quoted => Content::Null,
                    _ => Content::Scalar { text: text.into_owned(), quoted },
                };
                self.add(Node { at, content }, anchor)
            }
            Event::Alias(anchor) => {
                let target = self.anchors.iter().rev().find(|(number, _)| *number == anchor);
                let Some((_, node)) = target else {
                    return Err(Diagnostic::error(at, "an alias of a value that is not finished yet"));
                };
                let copy = Node { at, ..node.clone() };
                self.spend(copy.size(), at)?;
                if self.stack.len() + copy.depth() > MAX_DEPTH {
                    return Err(too_deep(at));
                }
                self.add(copy, 0)
            }
            Event::SequenceStart(anchor, tag) => match tag {
                Some(tag) => Err(tagged(&tag)),
                None => self.open(at, anchor, Content::List(Vec::new())),
            },
            Event::MappingStart(anchor, tag) => match tag {
                Some(tag) => Err(tagged(&tag)),
                None => self.open(at, anchor, Content::Map(Vec::new())),
            },
            Event::SequenceEnd | Event::MappingEnd => match self.stack.pop() {
                Some(open) => self.close(Node { at: open.at, content: open.content }, open.anchor),
                None => Ok(()),
            },
        }
    }

    fn spend(&mut self, nodes: usize, at: Position) -> Result<(), Diagnostic> {
        self.nodes += nodes;
        if self.nodes > MAX_NODES {
            let hint = "aliases count as often as they are used";
            return Err(
                Diagnostic::error(at, format!("the file holds more than {MAX_NODES} values")).hint(hint)
            );
        }
        Ok(())
    }

    fn open(&mut self, at: Position, anchor: usize, content: Content) -> Result<(), Diagnostic> {
        self.spend(1, at)?;
        if self.stack.len() >= MAX_DEPTH {
            return Err(too_deep(at));
        }
        let in_key_position = self
            .stack
            .last()
            .is_some_and(|open| matches!(open.content, Content::Map(_)) && open.key.is_none());
        if in_key_position {
            let message = "a list or mapping cannot be a key";
            return Err(
                Diagnostic::error(at, message).hint("put the text in quotes if it begins with `{` or `[`")
            );
        }
        self.stack.push(Open { at, anchor, key: None, content });
        Ok(())
    }

    fn add(&mut self, node: Node, anchor: usize) -> Result<(), Diagnostic> {
        self.spend(1, node.at)?;
        self.close(node, anchor)
    }

    /// Hands a finished value to what it stands in.
    fn close(&mut self, mut node: Node, anchor: usize) -> Result<(), Diagnostic> {
        if anchor != 0 {
            self.spend(node.size(), node.at)?;
            self.anchors.push((anchor, node.clone()));
        }
        let Some(open) = self.stack.last_mut() else {
            self.root.get_or_insert(node);
            return Ok(());
        };
        match (&mut open.content, open.key.take()) {
            (Content::List(items), _) => items.push(node),
            (Content::Map(_), None) => {
                let key = match node.content {
                    Content::Scalar { text, .. } => text,
                    Content::Null => {
                        return Err(Diagnostic::error(node.at, "a value without its key"));
                    }
                    Content::List(_) | Content::Map(_) => {
                        return Err(Diagnostic::error(node.at, "a list or mapping cannot be a key"));
                    }
                };
                if key == "<<" {
                    let message = "merge keys (`<<`) are not part of YAML 1.2";
                    return Err(Diagnostic::error(node.at, message).hint("write the keys out"));
                }
                open.key = Some((key, node.at));
            }
            (Content::Map(entries), Some((key, key_at))) => {
                if let Some(first) = entries.iter().find(|entry| entry.key == key) {
                    let message = format!("`{key}` stands here a second time");
                    let hint = format!("the first is at line {}; keep one of them", first.key_at.line);
                    self.diagnostics.push(Diagnostic::error(key_at, message).hint(hint));
                } else {
                    if matches!(node.content, Content::Null) {
                        node.at = key_at;
                    }
                    entries.push(Entry { key, key_at, value: node });
                }
            }
            // Only lists and mappings are ever opened.
            (Content::Null | Content::Scalar { .. }, _) => {}
        }
        Ok(())
    }
}

fn too_deep(at: Position) -> Diagnostic {
    Diagnostic::error(at, format!("nested deeper than {MAX_DEPTH} levels"))
}

/// How long each line is, in characters.
struct Lines(Vec<usize>);

impl Lines {
    fn of(source: &str) -> Self {
        Self(source.lines().map(|line| line.chars().count()).collect())
    }

    /// The parser's place as ours, inside the text even for what it finds beyond its end.
    fn position(&self, marker: &Marker) -> Position {
        match self.0.get(marker.line().saturating_sub(1)) {
            Some(length) => {
                Position { line: marker.line().max(1), column: (marker.col() + 1).min(length + 1) }
            }
            None => {
                Position { line: self.0.len().max(1), column: self.0.last().map_or(1, |length| length + 1) }
            }
        }
    }
}

/// The parser's words with what usually causes them.
fn explain(info: &str, at: Position, source: &str) -> Diagnostic {
    let line = source.lines().nth(at.line - 1).unwrap_or_default();
    let indent: String = line.chars().take_while(|c| c.is_whitespace()).collect();
    if info.contains("recursion limit") {
        return Diagnostic::error(at, format!("nested deeper than {MAX_DEPTH} levels"));
    }
    if indent.contains('\t') || info.contains("tab") {
        return Diagnostic::error(at, "a tab where YAML needs spaces").hint("indent with spaces");
    }
    let diagnostic = Diagnostic::error(at, format!("not valid YAML: {info}"));
    if info.contains("mapping values are not allowed") {
        diagnostic.hint("put a text that holds `: ` in quotes, or check the indentation")
    } else if info.contains("quoted scalar") {
        diagnostic.hint("close the quote that begins here")
    } else if info.contains("simple key") || info.contains("block mapping") || info.contains("block end") {
        diagnostic.hint("check the indentation of this line and the `:` after its key")
    } else if info.contains("undefined alias") || info.contains("unknown anchor") {
        diagnostic.hint("put a text that begins with `*` in quotes")
    } else if info.contains("cannot start any token") || info.contains("reserved") {
        diagnostic.hint("put a text that begins with `@`, '`' or `%` in quotes")
    } else {
        diagnostic
    }
}
