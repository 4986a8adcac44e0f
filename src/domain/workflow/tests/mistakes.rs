use proptest::prelude::*;

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

#[test]
fn mistakes_in_steps() {
    let steps: &[(&str, &str)] = &[
        ("unknown-kind", "- { id: a, uses: fetsch }"),
        ("later-kind", "- { id: a, uses: shadow }"),
        ("neither", "- { id: a, rnu: x }"),
        ("both", "- { id: a, run: x, uses: gate }"),
        ("key-of-another-kind", "- { id: a, uses: publish, outputs: { from: x }, store: models }"),
        ("template-in-run", "- { id: a, run: 'echo ${{ secrets.TOKEN }}' }"),
        ("units", "- { id: a, run: x, timeout: 30, grace: [1s], limits: { memory: 4G, log: 1 } }"),
        ("retry", "- { id: a, run: x, retry: { attempts: 0, factor: 0.5, backoff: 10m } }"),
        ("path", "- { id: a, run: x, working_dir: ../up, outputs: { from: /etc } }"),
        ("env", "- { id: a, run: x, env: { 1A: x, REFIT_RUN: y, B: '${{ inputs.x }}', C: '${{ model' } }"),
        (
            "pattern",
            "- { id: a, run: x, metrics: { stdout: { mae: { pattern: 'MAE: [\\d.]+' }, r2: { pattern: '(a)(b)' }, mse: { pattern: '(' } } } }",
        ),
        ("duplicate-id", "- { run: x }\n- { run: y }"),
        (
            "needs",
            "- { id: a, run: x, needs: b }\n- { id: b, run: x, needs: [a, b] }\n- { id: c, run: x, needs: bb }",
        ),
        ("cycle", "- { id: a, run: x, needs: c }\n- { id: b, run: x }\n- { id: c, run: x }"),
        (
            "if",
            "- { id: a, run: x, if: 'step.b.ok' }\n- { id: b-1, run: x, if: 'size(model)' }\n- { id: c, run: x, if: 'steps.b-1.ok && steps.c.ok && steps.d.ok' }\n- { id: d, run: x, if: 'canary.verdict == 1' }",
        ),
        ("if-syntax", "- { id: a, run: x, if: 'model = 3' }"),
        ("not-before", "- { id: a, run: x }\n- { id: b, run: x, needs: [] , if: 'steps.a.ok' }"),
        (
            "secret-in-message",
            "- { id: a, uses: approve, with: { message: '${{ secrets.TOKEN }}' } }\n- { id: b, run: x, env: { A: '${{ secrets }}' } }",
        ),
        (
            "gate-unfed",
            "- { id: t, run: x, metrics: { stdout: { mae: { pattern: '(a)' } } } }\n- { id: g, uses: gate, with: { rules: [{ metric: mea, max: 3 }, { metric: mae }, { metric: mae, vs: champion }, { metric: mae, worse_by_at_most: 1% }, { metric: mae, vs: champion, worse_by_at_most: 1%, each: segment }, { metric: mae, min: 3, max: 2, confidence: 95% }] } }",
        ),
        ("gate-nothing", "- { id: g, uses: gate, with: { rules: [{ metric: mae, max: 3 }] } }"),
        (
            "query",
            "- { id: d, uses: fetch, with: { to: a.csv, from: { sqlite: { path: a.db } } } }\n- { id: e, uses: fetch, with: { to: a.csv, from: { postgres: { url: x, query_file: q.sql } } } }\n- { id: f, uses: fetch, with: { to: a.csv, from: { sqlite: { path: a.db, query: 'select ${{ model }}' } } } }",
        ),
        (
            "expect",
            "- { id: d, uses: fetch, with: { to: a.csv, from: { file: a } }, expect: { columns: { id: integer, day: string }, rows: { min: 5, max: 2 }, null_rate: { dya: 200% }, newest: { column: day, max_age: 10d } } }",
        ),
        (
            "expect-2",
            "- { id: d, uses: fetch, with: { to: a.csv, from: { file: a } }, expect: { columns: { id: int, day: string }, null_rate: { dya: 20% }, newest: { column: day, max_age: 10d } } }",
        ),
        ("canary-alone", "- { id: c, uses: canary, with: { target: p, stages: [50%, 10%, 101%] } }"),
        (
            "canary-alone-2",
            "- { id: c, uses: canary, with: { target: p, stages: [50%, 10%] } }\n- { id: p, uses: promote, with: { target: q } }",
        ),
        (
            "promote-alone",
            "- { uses: promote }\n- { uses: wait, with: { for: 1h, until: \"canary.verdict == 'passed'\" } }\n- { uses: compare, with: { rules: [{ metric: abs_error }] } }",
        ),
        (
            "wait",
            "- { id: a, uses: wait, with: { at_most: 3h } }\n- { id: b, uses: wait, with: { for: 3h, until: 'model == \"x\"', at_most: 1h }, timeout: 3h }",
        ),
        (
            "compare",
            "- { uses: compare, with: { when_underpowered: replay, alpha: 2, rules: [{ metric: error_rate, worse_by_at_most: 0.5pp }, { metric: errors }] } }",
        ),
        (
            "compare-2",
            "- { uses: compare, with: { alpha: 2, weights: { error_rate: 0.5, mae: 1 }, rules: [{ metric: error_rate, acceptable_below: 5, never_above: 120% }, { metric: error_rate, worse_by_at_most: 0% }, { metric: abs_error, acceptable_below: 5% }] } }",
        ),
    ];
    let said: Vec<String> =
        steps.iter().map(|(name, steps)| format!("[{name}]\n{}", brief(&with_steps(steps)))).collect();
    insta::assert_snapshot!(said.join("\n"), @r#"
    [unknown-kind]
    4:20 error: there is no kind of step `fetsch` (did you mean `fetch`?)
    [later-kind]
    4:20 error: `uses: shadow` is not available yet in this version of refit (remove this step)
    [neither]
    4:5 error: step `a` has neither `run` nor `uses` (did you mean `run` instead of `rnu`?)
    [both]
    4:22 error: step `a` has both `run` and `uses` (a step does one thing; make two of it)
    [key-of-another-kind]
    4:5 error: step `a` has no `with` (add `with:` (where to))
    4:29 error: unknown key `outputs` in step `a` (`outputs` is a key of `run` steps)
    4:51 error: unknown key `store` in step `a` (`store` goes below `with:`)
    [template-in-run]
    4:19 error: no expression is allowed inside `run` (give the value to the command through `env:` and write `"$NAME"` in it)
    [units]
    4:31 error: `timeout` cannot be `30` (write a number and a unit, such as `30m`, `24h`, `7d` or `1h30m`)
    4:42 error: `grace` is a duration, not a list (such as `30m`, `24h`, `7d` or `1h30m`)
    4:66 error: `memory` cannot be `4G` (write a number and a unit, such as `512MiB` or `4GiB`)
    4:75 error: `log` cannot be `1` (write a number and a unit, such as `512MiB` or `4GiB`)
    [retry]
    4:29 error: `factor` of a retry is from 1 to 100
    4:29 error: `max` of a retry is shorter than its `backoff` (raise `max`, 5m when absent)
    4:41 error: `attempts` cannot be `0` (write a whole number from 1 to 100)
    [path]
    4:35 error: `working_dir` cannot be `../up` (write a path inside the project, without `..` and a leading `/`)
    4:59 error: `from` cannot be `/etc` (write a path inside the project, without `..` and a leading `/`)
    [env]
    4:33 error: `1A` cannot be an environment variable
    4:47 error: `REFIT_RUN` is refit's own (names that begin with `REFIT_` are set by refit)
    4:53 error: there is no input `x` (declare it: `on: { manual: { inputs: { x: { type: string } } } }`)
    4:75 error: `C`: `${{ model`: `${{` without its `}}` (expressions are CEL: `steps.data.rows >= 500 && model != 'x'`)
    [pattern]
    4:59 error: `pattern` cannot be `MAE: [\d.]+` (put the number in parentheses, such as `MAE: ([\d.]+)`)
    4:91 error: `pattern` cannot be `(a)(b)` (it has 2 groups; keep one and write the others as `(?:…)`)
    4:119 error: `pattern` cannot be `(` (not a regular expression: unclosed group)
    [duplicate-id]
    5:5 error: two steps are called `run`; the first is at line 4 (a step without `id` is called after its kind; give this one an `id`)
    [needs]
    4:22 error: these steps wait for each other: a, b (remove one of their `needs`; a step without `needs` needs the one before it)
    5:33 error: step `b` needs itself (remove it from its own `needs`)
    6:29 error: `c` needs `bb`, and there is no such step (did you mean `b`?)
    [cycle]
    4:22 error: these steps wait for each other: a, b, c (remove one of their `needs`; a step without `needs` needs the one before it)
    [if]
    4:26 error: `if`: there is no `step` (did you mean `steps`?)
    5:28 error: `if` is a number: it is never true or false (compare it with something, such as `>= 500` or `== 'pass'`)
    6:26 error: there is no step `b` (write `steps['b-1']`: in CEL `-` is minus)
    6:26 error: `steps.c.ok`: a step cannot look at itself (look at a step that ends before it)
    6:26 error: `steps.d.ok`: `d` has not ended when this step begins (add `d` to its `needs`)
    7:26 error: `if` cannot use `canary` (here there are: model, inputs, event, secrets, steps)
    [if-syntax]
    4:26 error: `if`: `model = 3`: `=` compares nothing; write `==` (character 7) (expressions are CEL: `steps.data.rows >= 500 && model != 'x'`)
    [not-before]
    5:38 error: `steps.a.ok`: `a` has not ended when this step begins (add `a` to its `needs`)
    [secret-in-message]
    4:46 error: `message` cannot use a secret (its value is stored or shown; secrets go into `env`, `url`, `headers` or `body`)
    5:32 error: `A` uses `secrets` as a whole (name one secret, such as `secrets.DATABASE_URL`)
    [gate-unfed]
    5:42 error: nothing gives the metric `mea` (did you mean `mae`?)
    5:67 error: the rule on `mae` has no limit (add `max`, `min`, or `vs: champion` with `worse_by_at_most`)
    5:84 error: the rule on `mae` does not say how much worse than the champion it may be (add `worse_by_at_most: 2%`)
    5:115 error: the rule on `mae` does not say worse than what (add `vs: champion`)
    5:154 error: which direction of `mae` is better is not said (add `metrics: { mae: { better: lower } }` at the top of the file)
    5:154 error: `each` needs a metrics file: what a command prints has no segments and no rows (add `metrics: { file: true }` to the trainer)
    5:222 error: no `mae` is at least 3 and at most 2 (swap `min` and `max`)
    [gate-nothing]
    4:42 error: nothing gives the metric `mae` (add `metrics: { stdout: { mae: { pattern: '…' } } }` or `metrics: { file: true }` to the trainer)
    [query]
    4:62 error: `sqlite` needs exactly one of `query`, `query_file`
    5:86 error: `q.sql` cannot be read (paths are relative to the project, not to this file)
    6:83 error: no expression is allowed inside a query (select the rows here and filter in the trainer)
    [expect]
    4:5 error: `newest` looks at `day`, which is no date or timestamp (name a column of type date or timestamp)
    4:5 warning: `expect` checks the column `dya`, which `columns` does not list (did you mean `day`?)
    4:92 error: `id` cannot be `integer` (choose one of: int, float, string, bool, date, timestamp)
    4:122 error: `min` rows are more than `max` rows
    4:160 error: the null rate of `dya` is from 0% to 100%
    [expect-2]
    4:5 error: `newest` looks at `day`, which is no date or timestamp (name a column of type date or timestamp)
    4:5 warning: `expect` checks the column `dya`, which `columns` does not list (did you mean `day`?)
    [canary-alone]
    4:5 error: `c` has no version to send traffic to (put a `publish` step before it)
    4:5 error: no rules say when `c` is good or bad (add a `compare` step with the rules)
    4:5 warning: no step after `c` promotes it or rolls it back (add a `promote` step; it promotes, rolls back or holds by the verdict)
    4:61 error: a stage of 10% after one of 50% (stages ascend, such as `[10%, 25%, 50%]`)
    4:66 error: an entry of `stages` cannot be `101%` (a share of traffic is above 0% and at most 100%)
    [canary-alone-2]
    4:5 error: `c` has no version to send traffic to (put a `publish` step before it)
    4:5 error: no rules say when `c` is good or bad (add a `compare` step with the rules)
    4:61 error: a stage of 10% after one of 50% (stages ascend, such as `[10%, 25%, 50%]`)
    5:5 error: `p` promotes on `q`, and the canary is on `p` (remove `target`; the canary's is meant when it is absent)
    5:5 warning: nothing waits between the canary and `p` (add a `wait` step, or the verdict is taken before there is evidence)
    [promote-alone]
    4:5 error: `promote` has no canary to promote (put a `canary` step before it)
    4:5 warning: nothing waits between the canary and `promote` (add a `wait` step, or the verdict is taken before there is evidence)
    5:5 error: `wait` asks for `canary`, and none is out by then (put it after a `canary` step)
    5:25 warning: this step may wait for ever: `until` has no `at_most` (add `at_most: 72h`; what is undecided then follows `on_inconclusive`)
    5:43 warning: `canary.verdict` is never `passed` (verdicts are: pass, inconclusive, error, fail)
    6:5 error: `compare` has no canary to compare (put it after a `canary` step)
    [wait]
    4:32 error: this step waits for nothing (add `for: 24h`, or `until:` with a condition and `at_most`)
    4:32 warning: `at_most` has no effect without `until` (remove it, or add `until`)
    5:32 error: `at_most: 1h` is shorter than `for: 3h` (raise `at_most`)
    5:81 error: unknown key `timeout` in step `b` (`timeout` is a key of `run`, `fetch`, `gate`, `publish`, `canary`, `compare`, `promote`, `rollback`, `notify`, `http` steps)
    [compare]
    4:5 error: `compare` has no canary to compare (put it after a `canary` step)
    4:49 error: `replay` is not available yet in this version of refit (choose one of: hold)
    4:64 error: `alpha` is a probability above 0 and below 0.5
    4:115 error: `worse_by_at_most` cannot be `0.5pp` (differences in points (`pp`) are not available yet in this version of refit; write a percentage of the other value)
    4:134 error: `metric` cannot be `errors` (choose one of: error_rate, latency_slow_share, abs_error)
    [compare-2]
    4:5 error: `compare` has no canary to compare (put it after a `canary` step)
    4:37 error: `alpha` is a probability above 0 and below 0.5
    4:49 error: some rules have a weight and some have none (give every metric with a rule a weight, or none)
    4:73 error: `mae` has a weight but no rule (rules are on: error_rate, error_rate, abs_error)
    4:86 error: `acceptable_below` of `error_rate` is higher than its `never_above`
    4:126 error: `acceptable_below` does not fit `error_rate` (write a percentage, such as `5%`)
    4:142 error: `never_above` of `error_rate` is out of range
    4:150 error: `worse_by_at_most` of `error_rate` is above 0% (that two versions are exactly equal can never be shown; allow a margin such as `10%`)
    4:150 error: a second rule on `error_rate` (one metric has one rule; make one of the two)
    4:235 error: `acceptable_below` does not fit `abs_error` (write a number in the metric's unit)
    "#);
}

const CANARY: &str = "
- { id: train, run: x }
- { id: publish, uses: publish, with: { store: s } }
- { id: canary, uses: canary, with: { target: p, stages: 10% } }
- { id: wait, uses: wait, with: { for: 1h } }
- { id: compare, uses: compare, with: { rules: [{ metric: error_rate }] } }
- { id: promote, uses: promote }";

#[test]
fn mistakes_of_a_canary() {
    assert_eq!(brief(&with_steps(CANARY)), "");
    let changes: &[(&str, &str, &str)] = &[
        (
            "two-compares",
            "- { id: promote, uses: promote }",
            "- { id: other, uses: compare, with: { rules: [{ metric: abs_error }] } }\n- { id: promote, uses: promote }",
        ),
        ("no-such-compare", "stages: 10%", "stages: 10%, compare: compar"),
        ("never-promoted", "- { id: promote, uses: promote }", ""),
        ("no-wait", "- { id: wait, uses: wait, with: { for: 1h } }\n", ""),
        ("other-target", "uses: promote }", "uses: promote, with: { target: q } }"),
        (
            "until-for-ever",
            "{ for: 1h }",
            "{ until: \"canary.verdct == 'pass' || canary.verdict == 'passed'\" }",
        ),
        (
            "parallel-publish",
            "- { id: canary,",
            "- { id: publish2, uses: publish, needs: train, with: { store: s } }\n- { id: canary, needs: [publish, publish2],",
        ),
        (
            "labels",
            "- { id: publish,",
            "- { id: t2, run: x, runs_on: gpu, needs: [] }\n- { id: publish, needs: [train, t2],",
        ),
        ("from", "{ store: s }", "{ store: s, from: trian }"),
    ];
    let said: Vec<String> = changes
        .iter()
        .map(|(name, from, to)| {
            assert!(CANARY.contains(from), "{name}");
            format!("[{name}]\n{}", brief(&with_steps(&CANARY.replace(from, to))))
        })
        .collect();
    insta::assert_snapshot!(said.join("\n"), @r#"
    [two-compares]
    6:5 error: `canary` has 2 `compare` steps to choose from (name one: `compare: compare`)
    [no-such-compare]
    6:5 error: `canary` goes by `compar`, which is no `compare` step (did you mean `compare`?)
    [never-promoted]
    6:5 warning: no step after `canary` promotes it or rolls it back (add a `promote` step; it promotes, rolls back or holds by the verdict)
    [no-wait]
    8:5 warning: nothing waits between the canary and `promote` (add a `wait` step, or the verdict is taken before there is evidence)
    [other-target]
    9:5 error: `promote` promotes on `q`, and the canary is on `p` (remove `target`; the canary's is meant when it is absent)
    [until-for-ever]
    7:35 warning: this step may wait for ever: `until` has no `at_most` (add `at_most: 72h`; what is undecided then follows `on_inconclusive`)
    7:44 error: there is no `canary.verdct` (did you mean `canary.verdict`?)
    7:44 warning: `canary.verdict` is never `passed` (verdicts are: pass, inconclusive, error, fail)
    [parallel-publish]
    6:5 error: `publish` and `publish2` both publish and run side by side (add `needs: [publish]` to `publish2`)
    [labels]
    5:5 error: `train` and `t2` run side by side on workers with different labels (one worker runs all branches; give both the same `runs_on`, or one after the other by `needs`)
    [from]
    5:5 error: `from: trian` is no `run` step before `publish` (name the step whose files are published)
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
    55: `replay` is not available yet in this version of refit
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
fn inputs_that_a_scheduled_run_does_not_have() {
    let source = "name: w\nmodel: m\non: { schedule: { cron: '0 2 * * *' }, manual: { inputs: { reason: {} } } }\nsteps:\n  - run: x\n    env: { A: '${{ inputs.reason }}', B: '${{ inputs.reson }}' }\n";
    insta::assert_snapshot!(brief(source), @r#"
    6:15 warning: `inputs.reason` is not defined in a run that nobody gave `reason` (give the input `reason` a `default`)
    6:42 error: there is no input `reson` (did you mean `inputs.reason`?)
    "#);
}

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
