//! What a value of a workflow file looks like, and the rules of texts that are more than text.

use std::str::FromStr;

use crate::domain::expr::nearest;

/// A mapping with known keys.
pub(super) struct Object {
    /// Its name in the JSON Schema.
    pub(super) name: &'static str,
    pub(super) doc: &'static str,
    /// Groups of keys; groups are shared between objects.
    pub(super) keys: &'static [&'static [Key]],
    /// Exactly one of these keys is given; empty for no such rule.
    pub(super) one_of: &'static [&'static str],
}

impl Object {
    pub(super) fn keys(&self) -> impl Iterator<Item = &'static Key> {
        self.keys.iter().flat_map(|group| group.iter())
    }
}

/// A key of a mapping.
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) shape: Shape,
    pub(super) required: bool,
    /// Known, but only a later version can do it.
    pub(super) later: bool,
    pub(super) doc: &'static str,
}

/// An optional key.
pub(super) const fn key(name: &'static str, shape: Shape, doc: &'static str) -> Key {
    Key { name, shape, required: false, later: false, doc }
}

impl Key {
    pub(super) const fn required(mut self) -> Self {
        self.required = true;
        self
    }

    pub(super) const fn later(mut self) -> Self {
        self.later = true;
        self
    }
}

/// What a value looks like.
#[derive(Clone, Copy)]
pub(super) enum Shape {
    /// Any text; a number is taken as it is written.
    Text,
    /// A text, a number or a boolean.
    Scalar,
    /// A name by the rules of ids.
    Name,
    EventName,
    Email,
    /// A text with `${{ }}` parts over these roots.
    Template(&'static [&'static str]),
    /// A CEL condition over these roots.
    Condition(&'static [&'static str]),
    /// A shell command without `${{ }}`.
    Command,
    /// A query without `${{ }}`.
    Sql,
    /// A regular expression with one group.
    Pattern,
    /// A path inside the project.
    RelativePath,
    Duration,
    Size,
    Percent,
    /// A percentage, or a difference in percentage points.
    Margin,
    /// A percentage or a number.
    Rate,
    Share,
    Number,
    /// A whole number in a range.
    Integer(i64, i64),
    Boolean,
    Cron,
    Timezone,
    /// One of these words; `later` ones only a later version understands.
    Words {
        now: &'static [&'static str],
        later: &'static [&'static str],
    },
    Object(&'static Object),
    /// A list of at least one.
    List(&'static Shape),
    /// One, or a list of at least one.
    OneOrMany(&'static Shape),
    /// One, or a list that may be empty.
    OneOrManyOrNone(&'static Shape),
    /// A mapping from names of the file's own.
    MapOf(&'static Shape),
    /// A share of traffic, or a mapping.
    ShareOr(&'static Object),
    /// A step; its kind decides its keys.
    Step,
    /// Not looked at.
    Later,
}

impl Shape {
    /// What it is, in words.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Shape::Duration => "a duration",
            Shape::Size => "a size",
            Shape::Percent | Shape::Share => "a percentage",
            Shape::Margin => "a percentage or points",
            Shape::Rate => "a percentage or a number",
            Shape::Number => "a number",
            Shape::Integer(..) => "a whole number",
            Shape::Boolean => "true or false",
            Shape::Words { .. } => "one word",
            Shape::Name | Shape::EventName => "a name",
            Shape::Condition(_) => "an expression",
            Shape::Text
            | Shape::Scalar
            | Shape::Email
            | Shape::Template(_)
            | Shape::Command
            | Shape::Sql
            | Shape::Pattern
            | Shape::RelativePath
            | Shape::Cron
            | Shape::Timezone => "a text",
            Shape::List(_) | Shape::OneOrMany(_) | Shape::OneOrManyOrNone(_) => "a list",
            Shape::Object(_) | Shape::MapOf(_) | Shape::ShareOr(_) | Shape::Step | Shape::Later => {
                "a mapping"
            }
        }
    }

    pub(super) fn hint(&self) -> Option<String> {
        if let Shape::Words { now, .. } = self {
            return Some(format!("choose one of: {}", now.join(", ")));
        }
        matches!(self, Shape::Duration).then(|| "such as `30m`, `24h`, `7d` or `1h30m`".to_owned())
    }
}

/// A regular expression with exactly one group.
pub(super) fn pattern(text: &str) -> Result<regex::Regex, String> {
    let built = regex::RegexBuilder::new(text).size_limit(1 << 20).build();
    let regex = built.map_err(|error| {
        let text = error.to_string();
        let last = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
        format!("not a regular expression: {last}")
    })?;
    match regex.captures_len() - 1 {
        1 => Ok(regex),
        0 => Err("put the number in parentheses, such as `MAE: ([\\d.]+)`".to_owned()),
        groups => Err(format!("it has {groups} groups; keep one and write the others as `(?:…)`")),
    }
}

pub(super) fn relative(text: &str) -> Result<(), String> {
    let outside = text.starts_with('/') || text.split(['/', '\\']).any(|part| part == "..");
    match text {
        _ if outside => Err("write a path inside the project, without `..` and a leading `/`".to_owned()),
        "" => Err("write a path inside the project".to_owned()),
        _ if text.contains("${{") => Err("no expression is allowed in this path".to_owned()),
        _ if text.contains(char::is_control) => Err("write a path without control characters".to_owned()),
        _ => Ok(()),
    }
}

pub(super) fn cron(text: &str) -> Result<(), String> {
    const EXAMPLE: &str = "five fields: minute, hour, day of month, month, day of week, such as `0 2 * * 0`";
    if text.len() > 200 || text.split_whitespace().count() != 5 {
        return Err(EXAMPLE.to_owned());
    }
    let cron = croner::Cron::from_str(text).map_err(|error| format!("{EXAMPLE} ({error})"))?;
    // Any day will do: what does not come within the years croner looks ahead never comes.
    let from = chrono::DateTime::UNIX_EPOCH;
    cron.find_next_occurrence(&from, true).map(drop).map_err(|_| "this time never comes".to_owned())
}

pub(super) fn timezone(text: &str) -> Result<(), String> {
    if chrono_tz::Tz::from_str(text).is_ok() {
        return Ok(());
    }
    Err(match nearest(text, chrono_tz::TZ_VARIANTS.iter().map(|zone| zone.name())) {
        Some(near) => format!("did you mean `{near}`?"),
        None => "write an IANA time zone, such as `Europe/Berlin` or `UTC`".to_owned(),
    })
}
