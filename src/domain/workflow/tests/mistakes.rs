use super::*;

#[test]
fn a_report_shows_the_line_and_what_to_do() {
    let source = "name: retrain\nmodel: m\nstpes:\n  - run: x\non:\n  schedule: { cron: \"0 2 * *\", timezone: Europ/Berlin }\n";
    insta::assert_snapshot!(said(source), @r#"
    error: the workflow has no `steps`
     --> w.yaml:1:1
      |
    1 | name: retrain
      | ^^^^
      = hint: add `steps:` (what a run does, in order)

    error: unknown key `stpes` in the workflow
     --> w.yaml:3:1
      |
    3 | stpes:
      | ^^^^^
      = hint: did you mean `steps`?

    error: `cron` cannot be `0 2 * *`
     --> w.yaml:6:21
      |
    6 |   schedule: { cron: "0 2 * *", timezone: Europ/Berlin }
      |                     ^^^^^^^^^
      = hint: five fields: minute, hour, day of month, month, day of week, such as `0 2 * * 0`

    error: `timezone` cannot be `Europ/Berlin`
     --> w.yaml:6:42
      |
    6 |   schedule: { cron: "0 2 * *", timezone: Europ/Berlin }
      |                                          ^^^^^^^^^^^^
      = hint: did you mean `Europe/Berlin`?
    "#);
}

/// What people get wrong, one file each, with all that is said about it.
#[test]
fn typical_mistakes() {
    let files: &[(&str, &str)] = &[
        ("empty", ""),
        ("comment", "# nothing\n"),
        ("not-a-mapping", "- name: w\n"),
        ("tab", "name: w\nmodel: m\nsteps:\n\t- run: x\n"),
        ("colon", "name: w\nmodel: m\nsteps:\n  - run: echo a: b\n"),
        ("unclosed", "name: \"w\nmodel: m\n"),
        ("two-documents", "name: w\nmodel: m\nsteps: [{run: x}]\n---\nname: v\n"),
        ("duplicate-key", "name: w\nmodel: m\nmodel: n\nsteps: [{run: x}]\n"),
        ("merge", "name: w\nmodel: m\nsteps: [{<<: {a: b}, run: x}]\n"),
        ("tag", "name: !x w\nmodel: m\nsteps: [{run: x}]\n"),
        ("alias", "name: w\nmodel: *m\nsteps: [{run: x}]\n"),
        ("no-steps", "name: w\nmodel: m\nsteps: []\n"),
        ("steps-mapping", "name: w\nmodel: m\nsteps:\n  train: { run: x }\n"),
        ("missing", "model: m\nsteps: [{run: x}]\n"),
        ("bad-name", "name: my workflow\nmodel: m\nsteps: [{run: x}]\n"),
        ("mode", "name: w\nmodel: m\nmode: advice\nsteps: [{run: x}]\n"),
        ("later-trigger", "name: w\nmodel: m\non: { drift: { psi: 0.25 }, decay: {} }\nsteps: [{run: x}]\n"),
        ("never", "name: w\nmodel: m\non: { schedule: { cron: \"0 0 31 2 *\" } }\nsteps: [{run: x}]\n"),
        ("cron", "name: w\nmodel: m\non: { schedule: { cron: \"99 2 * * 0\" } }\nsteps: [{run: x}]\n"),
        (
            "event",
            "name: w\nmodel: m\non: { event: { name: x, if: \"event.rows > 3\" } }\nsteps: [{run: x}]\n",
        ),
        (
            "event-root",
            "name: w\nmodel: m\non: { event: { name: x, if: \"steps.a.b > 3\" } }\nsteps: [{run: x}]\n",
        ),
        (
            "input",
            "name: w\nmodel: m\non: { manual: { inputs: { days: { type: number, default: soon } } } }\nsteps: [{run: x}]\n",
        ),
        ("nobody", "name: w\nmodel: m\nsteps: [{run: x}]\nnotify: [{ on: [promotd] }]\n"),
        ("email", "name: w\nmodel: m\nsteps: [{run: x}]\nnotify: [{ on: failed, email: team }]\n"),
    ];
    let said: Vec<String> =
        files.iter().map(|(name, source)| format!("[{name}]\n{}", brief(source))).collect();
    insta::assert_snapshot!(said.join("\n"), @r#"
    [empty]
    1:1 error: the file is empty (begin with `name:`, `model:` and `steps:`; `refit init` writes a whole one)
    [comment]
    1:1 error: the file is empty (begin with `name:`, `model:` and `steps:`; `refit init` writes a whole one)
    [not-a-mapping]
    1:1 error: the workflow is a mapping, not a list (it has keys such as `name`, `model`, `mode`, `on`, `concurrency`)
    [tab]
    4:2 error: a tab where YAML needs spaces (indent with spaces)
    [colon]
    4:16 error: not valid YAML: mapping values are not allowed in this context (put a text that holds `: ` in quotes, or check the indentation)
    [unclosed]
    1:7 error: not valid YAML: invalid indentation in quoted scalar (close the quote that begins here)
    [two-documents]
    4:1 error: a second document in one file (write one workflow per file; remove `---` and what follows it)
    [duplicate-key]
    3:1 error: `model` stands here a second time (the first is at line 2; keep one of them)
    [merge]
    3:10 error: merge keys (`<<`) are not part of YAML 1.2 (write the keys out)
    [tag]
    1:7 error: the tag `!x` means nothing here (remove it; quote a text with '…')
    [alias]
    2:8 error: not valid YAML: while parsing node, found unknown anchor (put a text that begins with `*` in quotes)
    [no-steps]
    3:8 error: `steps` is empty
    [steps-mapping]
    4:3 error: `steps` is a list, not a mapping (write each entry on a line of its own that begins with `- `)
    [missing]
    1:1 error: the workflow has no `name` (add `name:` (what `refit trigger` takes))
    [bad-name]
    1:7 error: `name` cannot be `my workflow` (letters, digits, `-`, `_` and `.`, beginning with a letter or digit, at most 100 characters)
    [mode]
    3:7 error: `mode` cannot be `advice` (did you mean `advise`?)
    [later-trigger]
    3:7 error: `drift` is not available yet in this version of refit (remove it)
    3:29 error: `decay` is not available yet in this version of refit (remove it)
    [never]
    3:25 error: `cron` cannot be `0 0 31 2 *` (this time never comes)
    [cron]
    3:25 error: `cron` cannot be `99 2 * * 0` (five fields: minute, hour, day of month, month, day of week, such as `0 2 * * 0` (Component error: Number out of bounds.))
    [event]
    3:29 error: there is no `event.rows` (what the sender gave is below `data`: `event.data.rows`)
    [event-root]
    3:29 error: `if` cannot use `steps` (here there are: model, event)
    [input]
    3:58 error: the default of `days` is not a number
    [nobody]
    4:10 error: this notice goes to nobody (add `slack: <name>`, `email: [<address>]`, `webhook: <name>` or `console: true`)
    4:17 error: an entry of `on` cannot be `promotd` (did you mean `promoted`?)
    [email]
    4:31 error: `email` cannot be `team` (write a mail address, such as `team@example.com`)
    "#);
}

/// The whole language as planned: what this version cannot do is said, and nothing else is wrong.
#[test]
fn what_is_not_available_yet_is_said_and_not_ignored() {
    let source = include_str!("vision.yaml");
    let files: BTreeMap<String, String> =
        referenced_files(source).into_iter().map(|path| (path, "select 1".to_owned())).collect();
    let diagnostics = parse("w.yaml", source, &files).expect_err("later words");
    let lines: Vec<String> =
        diagnostics.items.iter().map(|item| format!("{}: {}", item.at.line, item.message)).collect();
    insta::assert_snapshot!(lines.join("\n"), @r#"
    7: `data` is not available yet in this version of refit
    8: `drift` is not available yet in this version of refit
    9: `decay` is not available yet in this version of refit
    48: `compare` replays inputs, and there is no command to do it with
    "#);
}

#[test]
fn after_a_failure_nothing_goes_out() {
    let source = "name: w\nmodel: m\nsteps: [{ id: a, run: x }]\non_failure:\n  - { id: b, uses: publish, with: { store: s } }\n  - { id: c, run: y, if: steps.a.ok && steps.zz.ok }\n";
    insta::assert_snapshot!(brief(source), @r#"
    5:5 error: a `publish` step cannot run after a failure (`on_failure` takes run, rollback, notify and http)
    6:26 error: there is no step `zz` (steps are: a)
    "#);
}

#[test]
fn an_event_has_a_name() {
    let source = "name: w\nmodel: m\non: { event: { name: '' } }\nsteps: [{ run: x }]\n";
    insta::assert_snapshot!(brief(source), @"3:22 error: `name` cannot be `` (a name without blanks, such as `ml/retrain.requested`)");
}

#[test]
fn inputs_that_nobody_could_give() {
    let source = "name: w\nmodel: m\non:\n  event: { name: data/ready }\n  manual:\n    inputs:\n      a: { required: true }\n      b: { required: true, default: x }\n      c: {}\nsteps: [{ run: x }]\n";
    insta::assert_snapshot!(brief(source), @"7:22 warning: `on: event` cannot start a run: input `a` is required, and it gives none (give `a` a `default`, or leave `required` out)");
}

#[test]
fn inputs_that_a_scheduled_run_does_not_have() {
    let source = "name: w\nmodel: m\non: { schedule: { cron: '0 2 * * *' }, manual: { inputs: { reason: {} } } }\nsteps:\n  - run: x\n    env: { A: '${{ inputs.reason }}', B: '${{ inputs.reson }}' }\n";
    insta::assert_snapshot!(brief(source), @r#"
    6:15 warning: `inputs.reason` is not defined in a run that nobody gave `reason` (give the input `reason` a `default`)
    6:42 error: there is no input `reson` (did you mean `inputs.reason`?)
    "#);
}

#[test]
fn a_run_in_flight_goes_on_by_what_was_no_mistake_when_it_began() {
    for (snapshot, mistake) in [
        ("name: w\nmodel: m\nsteps: [{ run: x, if: \"secrets.TOKEN != ''\" }]\n", "`if` cannot use a secret"),
        ("name: w\nmodel: m\non: { event: { name: '' } }\nsteps: [{ run: x }]\n", "`name` cannot be ``"),
    ] {
        let said = parse("w.yaml", snapshot, &BTreeMap::new()).map(|_| ()).map_err(|it| it.items);
        assert_eq!(said, Ok(()), "of the run");
        assert!(brief(snapshot).contains(mistake), "of the file: {}", brief(snapshot));
    }
}
