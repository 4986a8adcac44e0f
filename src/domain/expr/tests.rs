use proptest::prelude::*;
use serde_json::json;

use super::*;

fn scope() -> Scope {
    Scope::new()
        .with("model", json!("race-times"))
        .with("inputs", json!({"reason": "new season", "days": 3, "none": null}))
        .with("event", json!({"name": "ml/retrain.requested", "data": {"rows": 612, "tags": ["a", "b"]}}))
        .with(
            "steps",
            json!({"data": {"rows": 20000, "path": "a.csv"}, "train-2": {"metrics": {"mae": 5.5}}}),
        )
        .with("secrets", json!({"TOKEN": "s3cr3t"}))
}

fn cause(source: &str) -> String {
    match Expr::compile(source).and_then(|expr| expr.evaluate(&scope())) {
        Ok(value) => format!("= {value}"),
        Err(error) => error.cause,
    }
}

fn paths(source: &str) -> Vec<String> {
    Expr::compile(source).expect("compiles").references().iter().map(ToString::to_string).collect()
}

#[test]
fn values_of_expressions() {
    for (source, value) in [
        ("event.data.rows >= 500", json!(true)),
        ("event.data.rows >= 500.5", json!(true)),
        ("event.data.rows * 2", json!(1224)),
        ("steps['train-2'].metrics.mae < 6", json!(true)),
        ("'b' in event.data.tags", json!(true)),
        ("event.data.tags.exists(t, t == 'b')", json!(true)),
        ("has(event.data.nope) && event.data.nope > 3", json!(false)),
        ("has(inputs.reason) ? inputs.reason : 'none'", json!("new season")),
        ("size(event.data.tags) == 2 && model.startsWith('race')", json!(true)),
        ("model.matches('^race-')", json!(true)),
        ("string(inputs.days) + ' days'", json!("3 days")),
        ("{'b': 1, 'a': [1.5]}", json!({"a": [1.5], "b": 1})),
    ] {
        assert_eq!(Expr::compile(source).and_then(|e| e.evaluate(&scope())), Ok(value), "{source}");
    }
}

#[test]
fn an_undefined_path_is_an_error_that_names_the_nearest() {
    insta::assert_snapshot!(cause("steps.data.rws > 3"), @"`steps.data.rws` is not defined; did you mean `steps.data.rows`?");
    insta::assert_snapshot!(cause("stepps.data.rows > 3"), @"`stepps` is not defined; did you mean `steps`?");
    insta::assert_snapshot!(cause("canary.verdict == 'pass'"), @"`canary` is not defined; there are: model, inputs, event, steps, secrets");
    insta::assert_snapshot!(cause("event.data.zzz == 1"), @"`event.data.zzz` is not defined");
    insta::assert_snapshot!(cause("secrets.TOKN"), @"`secrets.TOKN` is not defined; did you mean `secrets.TOKEN`?");
}

#[test]
fn mistakes_are_told_in_plain_words() {
    insta::assert_snapshot!(cause("event.data.rows >"), @"is not a CEL expression: unexpected end (character 18)");
    insta::assert_snapshot!(cause("event.data.rows = 3"), @"`=` compares nothing; write `==` (character 17)");
    insta::assert_snapshot!(cause("'abc"), @"a text without its closing quote");
    insta::assert_snapshot!(cause("sizee(model) > 1"), @"there is no function `sizee`; did you mean `size`?");
    insta::assert_snapshot!(cause("steps['train-2'].metrics.mae * 2 > 1"), @"`*` does not work on float and int (convert with `double()`, `int()` or `string()`)");
    insta::assert_snapshot!(cause("1 / 0"), @"divides by zero");
    insta::assert_snapshot!(cause("event.data.tags[7]"), @"an index beyond the end of a list");
    insta::assert_snapshot!(cause(""), @"is empty");
    insta::assert_snapshot!(cause("Foo{a: 1}"), @"messages such as `Name{…}` do not exist here");
    insta::assert_snapshot!(cause("0.0 / 0.0"), @"is not a finite number");
}

#[test]
fn errors_never_show_a_secret() {
    for source in [
        "int(secrets.TOKEN)",
        "secrets.TOKEN < 3",
        "secrets.TOKEN.rows",
        "secrets.TOKEN + 1",
        "1[secrets.TOKEN]",
        "secrets.TOKEN()",
        "secrets[secrets.TOKEN]",
        "{'a': 1}[secrets.TOKEN]",
        "event.data[secrets.TOKEN]",
    ] {
        assert!(!cause(source).contains("s3cr3t"), "{source}: {}", cause(source));
    }
}

#[test]
fn references_are_dotted_paths() {
    assert_eq!(paths("steps.data.rows > 3 && steps['train-2'].ok"), ["steps.data.rows", "steps.train-2.ok"]);
    assert_eq!(paths("event.data.tags.all(t, t.name == model)"), ["event.data.tags", "model"]);
    assert_eq!(paths("has(steps.data.rows)"), ["steps.data"]);
    assert_eq!(paths("steps[inputs.which].rows"), ["inputs.which", "steps"]);
    assert_eq!(paths("{model: [event.id]}"), ["event.id", "model"]);
}

#[test]
fn templates_render_scalars_and_refuse_the_rest() {
    let render =
        |source: &str| Template::compile(source).and_then(|t| t.render(&scope())).map_err(|e| e.to_string());
    assert_eq!(render("plain $x {y} }}"), Ok("plain $x {y} }}".to_owned()));
    assert_eq!(render("${{ model }}/${{inputs.days}}!"), Ok("race-times/3!".to_owned()));
    assert_eq!(render("${{ {'a': {'b': '}}'}}.a.b }}"), Ok("}}".to_owned()));
    assert_eq!(render("${{ steps['train-2'].metrics.mae }}"), Ok("5.5".to_owned()));
    insta::assert_snapshot!(render("${{ inputs.none }}").expect_err("null"), @"`inputs.none`: is null, which has no text");
    insta::assert_snapshot!(render("${{ event.data }}").expect_err("map"), @"`event.data`: is a map, which has no text; name one of its values");
    insta::assert_snapshot!(render("${{ inputs.reson }}").expect_err("undefined"), @"`inputs.reson`: `inputs.reson` is not defined; did you mean `inputs.reason`?");
    insta::assert_snapshot!(render("a ${{ model").expect_err("open"), @"`${{ model`: `${{` without its `}}`");
    insta::assert_snapshot!(render("a ${{ }}").expect_err("empty"), @"``: is empty");
}

#[test]
fn secrets_of_a_template_are_known() {
    let template = Template::compile("Bearer ${{ secrets.TOKEN }}${{ secrets['B'] }}").expect("compiles");
    assert_eq!(template.secret_names(), ["B", "TOKEN"].map(String::from).into());
    assert!(Template::compile("Bearer x").expect("compiles").secret_names().is_empty());
}

#[test]
fn hostile_sources_are_refused() {
    for source in [
        "(".repeat(900),
        "[".repeat(900),
        "{".repeat(900),
        "!".repeat(900),
        "-".repeat(900) + "1",
        format!("a{}", ".a".repeat(400)),
        format!("1{}", "+1".repeat(400)),
        "a".repeat(2_000),
        "[1].all(a, [1].all(b, [1].all(c, [1].all(d, true))))".to_owned(),
        "'".to_owned(),
        ["[1].all(a, true)"; 9].join("||"),
    ] {
        assert!(Expr::compile(&source).is_err(), "{} {source}", source.len());
    }
}

#[test]
fn a_loop_over_a_long_list_is_refused() {
    let scope = Scope::new().with("event", json!({"data": vec![0; 2_000]}));
    let looped = Expr::compile("event.data.all(x, x == 0)").expect("compiles");
    assert!(looped.evaluate(&scope).expect_err("too long").cause.contains("1000"));
    assert_eq!(Expr::compile("size(event.data)").expect("compiles").evaluate(&scope), Ok(json!(2_000)));
}

#[test]
fn a_result_has_a_largest_size() {
    let scope = Scope::new().with("event", json!({"data": vec![0; 900], "text": "x".repeat(12_000)}));
    let grown = Expr::compile("event.data.map(x, event.text + event.text)").expect("compiles");
    assert!(grown.evaluate(&scope).expect_err("too large").cause.contains("larger than"));
    let scope = Scope::new().with("event", json!({"data": [1], "text": "x".repeat(50_000)}));
    assert!(grown.evaluate(&scope).expect_err("too long").cause.contains("too long for a loop"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_text_compiles_or_not_but_never_panics(source in "[ a-c0-9.'\"\\\\\\[\\](){}?:!<>=&|+*/%,-]{0,60}|\\PC{0,40}") {
        if let Ok(expr) = Expr::compile(&source) {
            let _ = expr.evaluate(&scope());
            let _ = (expr.comparisons(), expr.never_a_condition());
        }
        let _ = Template::compile(&format!("x ${{{{ {source} }}}}"));
    }
}

#[test]
fn the_worst_sources_fit_the_stack_of_a_thread() {
    let nested = |open: &str, inner: &str, close: &str, times: usize| {
        open.repeat(times) + inner + &close.repeat(times)
    };
    for source in [
        nested("(", "1", ")", 24),
        nested("[", "1", "]", 24),
        nested("{'a':", "1", "}", 24),
        nested("size(", "model", ")", 24),
        nested("model.contains(", "model", ")", 24),
        nested("(true ? (", "1", ") : 2)", 12),
        nested("!", "true", "", 24),
        format!("true{}", " ? true : true".repeat(70)),
        format!("1{}", " + 1".repeat(110)),
        format!("true{}", "||true".repeat(59)),
        format!("1{}", " + 1".repeat(30)),
        format!("event{}", ".data".repeat(30)),
        nested("[1].all(x, ", "[1].all(y, ((((((((((((1))))))))))) > 0)", ")", 1),
        format!("[{}]", "1,".repeat(480) + "1"),
        format!("event{}", ".data".repeat(110)),
        format!("event{}", "[0]".repeat(300)),
        format!("event{}", "()".repeat(400)),
        "x ".repeat(480),
        "in ".repeat(320),
    ] {
        // Ends, within the stack of a test's thread; whether it is an expression does not matter here.
        let _ = Expr::compile(&source).and_then(|expr| expr.evaluate(&scope()));
    }
}
