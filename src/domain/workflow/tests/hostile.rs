use proptest::prelude::*;

use super::*;

#[test]
fn bombs_are_refused() {
    let mut laughs = String::from("name: w\nmodel: m\na0: &a0 [x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let items = vec![format!("*a{}", level - 1); 9].join(", ");
        laughs.push_str(&format!("a{level}: &a{level} [{items}]\n"));
    }
    assert!(brief(&laughs).contains("more than 20000 values"), "{}", brief(&laughs));
    let deep = format!("name: {}{}", "[".repeat(5_000), "]".repeat(5_000));
    assert!(brief(&deep).contains("nested deeper"), "{}", brief(&deep));
    let long = format!("name: {}", "x".repeat(300_000));
    assert!(brief(&long).contains("longer than"), "{}", brief(&long));
    let blocks: String = (0..300).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
    assert!(brief(&blocks).contains("nested deeper"), "{}", brief(&blocks));
    let dashes = format!("a: \n  {}", "- ".repeat(20_000));
    assert!(brief(&dashes).contains("nested deeper"), "{}", brief(&dashes));
    let questions = "? ".repeat(20_000);
    assert!(brief(&questions).contains("nested deeper") || brief(&questions).contains("cannot be a key"));
    let unknown: String = (0..3_000).map(|key| format!("key{key}: [x, y]\n")).collect();
    assert_eq!(brief(&unknown).lines().count(), 100);
    let steps = with_steps(&"- run: x\n".repeat(300));
    assert!(brief(&steps).contains("more than 200 steps"), "{}", brief(&steps));
}

#[test]
fn a_step_that_is_there_twice_by_an_alias_has_its_name_twice() {
    let said = brief(&with_steps("- &a { id: one, run: x }\n- *a\n"));
    assert_eq!(
        said,
        "5:5 error: two steps are called `one`; the first is at line 4 (write the step out, with an `id` of its own)"
    );
}

#[test]
fn an_alias_of_a_step_may_tell_of_the_failure_too() {
    let one = "- &tell { id: tell, run: x }\non_failure:\n- *tell\n";
    assert_eq!(brief(&with_steps(one).replace("  on_failure", "on_failure")), "");
    let all = with_steps("- { id: tell, run: x }\n").replace("steps:", "steps: &all");
    assert_eq!(brief(&format!("{all}on_failure: *all\n")), "");
}

#[test]
fn a_byte_that_no_text_holds_is_not_called_a_tab() {
    assert_eq!(brief("name: w\nmodel: a\0b\n"), "2:9 error: a NUL byte (save the file as text in UTF-8)");
}

#[test]
fn a_report_cannot_move_the_cursor() {
    let source = "name: w\nmodel: m\nst\u{1b}[2Jeps: \u{202e}x\n";
    let said = said(source);
    assert!(!said.contains(['\u{1b}', '\u{202e}']), "{said:?}");
}

/// Pieces of workflow files, put together at random.
fn pieces() -> impl Strategy<Value = String> {
    let words = vec![
        "name: w\n",
        "model: m\n",
        "steps:\n",
        "  - run: x\n",
        "  - uses: ",
        "gate\n",
        "canary\n",
        "    with:\n",
        "      rules:\n",
        "        - metric: mae\n",
        "          max: ",
        "3\n",
        "    needs: [a, b]\n",
        "    id: a\n",
        "    if: ",
        "steps.a.b == 'x'\n",
        "on: { schedule: { cron: '* * * * *' } }\n",
        "{",
        "}",
        "[",
        "]",
        ": ",
        "- ",
        "\"",
        "'",
        "\t",
        "&a ",
        "*a",
        "!t ",
        "|\n",
        ">\n",
        "---\n",
        "...\n",
        "%",
        "@",
        "${{ ",
        " }}",
        "é",
        "\u{2028}",
        "\r\n",
        "? ",
        "<<: ",
        "#",
        "\u{feff}",
        "\0",
    ];
    proptest::collection::vec(proptest::sample::select(words), 0..40).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn any_text_gives_a_workflow_or_places_within_it(source in prop_oneof![pieces(), any::<String>()]) {
        let _ = referenced_files(&source);
        if let Err(diagnostics) = parse("w.yaml", &source, &BTreeMap::new()) {
            prop_assert!(diagnostics.errors() > 0);
            for item in &diagnostics.items {
                let lines = source.lines().count().max(1);
                prop_assert!((1..=lines).contains(&item.at.line), "{:?}", item);
                let length = source.lines().nth(item.at.line - 1).map_or(0, |line| line.chars().count());
                prop_assert!((1..=length + 1).contains(&item.at.column), "{:?}", item);
            }
            let _ = diagnostics.render("w.yaml", &source);
        }
    }

    /// One damaged byte in a whole file.
    #[test]
    fn a_damaged_file_never_panics(at in 0usize..3_000, with in "\\PC|\t|\n|:|-|\\{|\"") {
        let mut source: Vec<char> = super::examples::EVERYTHING.chars().collect();
        let at = at % source.len();
        source.splice(at..=at, with.chars());
        let source: String = source.into_iter().collect();
        let _ = said(&source);
    }
}
