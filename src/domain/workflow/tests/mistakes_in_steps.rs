use super::*;

#[test]
fn mistakes_in_steps() {
    let steps: &[(&str, &str)] = &[
        ("unknown-kind", "- { id: a, uses: fetsch }"),
        ("later-kind", "- { id: a, uses: load }"),
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
            "- { id: a, uses: approve, with: { message: '${{ secrets.TOKEN }}' } }\n- { id: b, run: x, env: { A: '${{ secrets }}' } }\n- { id: c, run: x, if: \"secrets.TOKEN == 'x'\" }",
        ),
        (
            "gate-unfed",
            "- { id: t, run: x, metrics: { stdout: { mae: { pattern: '(a)' } } } }\n- { id: g, uses: gate, with: { rules: [{ metric: mea, max: 3 }, { metric: mae }, { metric: mae, vs: champion }, { metric: mae, worse_by_at_most: 1% }, { metric: mae, vs: champion, worse_by_at_most: 1%, each: segment }, { metric: mae, min: 3, max: 2, confidence: 95% }] } }",
        ),
        ("gate-nothing", "- { id: g, uses: gate, with: { rules: [{ metric: mae, max: 3 }] } }"),
        (
            "evaluate",
            "- { id: e, uses: evaluate, with: { run: 'score ${{ model }}', holdout: ../x, env: { REFIT_MODEL: a } } }\n- { id: f, uses: evaluate, run: x, with: { run: x } }\n- { id: g, uses: evaluate, with: { command: x } }\n- { id: t, run: x }\n- { id: h, uses: evaluate, with: { run: x, from: e, outputs: { from: o } } }",
        ),
        (
            "evaluate-2",
            "- { id: t, run: x }\n- { id: e, uses: evaluate, with: { run: x, from: tt } }\n- { id: g, uses: gate, with: { rules: [{ metric: mae, max: 3, min_rows: 5 }, { metric: auc, max: 3 }] } }",
        ),
        (
            "shadow",
            "- { id: s, uses: shadow, with: { run: x, from: { file: a.csv, sqlite: { path: a } }, every: 5s, until: 'canary.verdict == 1', metrics: { file: true } } }\n- { id: t, uses: shadow, with: { run: x, for: 1h } }",
        ),
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
        ("canary-everybody", "- { id: c, uses: canary, with: { target: p, stages: [50%, 100%] } }"),
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
            "- { uses: compare, with: { when_underpowered: replay, alpha: 2, rules: [{ metric: error_rate, worse_by_at_most: 120pp }, { metric: errors }, { metric: abs_error, worse_by_at_most: 5pp }] } }",
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
    4:20 error: `uses: load` is not available yet in this version of refit (remove this step)
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
    7:26 error: `if` cannot use `canary` (here there are: model, inputs, event, steps)
    [if-syntax]
    4:26 error: `if`: `model = 3`: `=` compares nothing; write `==` (character 7) (expressions are CEL: `steps.data.rows >= 500 && model != 'x'`)
    [not-before]
    5:38 error: `steps.a.ok`: `a` has not ended when this step begins (add `a` to its `needs`)
    [secret-in-message]
    4:46 error: `message` cannot use a secret (its value is stored or shown; secrets go into `env`, `url`, `headers` or `body`)
    5:32 error: `A` uses `secrets` as a whole (name one secret, such as `secrets.DATABASE_URL`)
    6:26 error: `if` cannot use a secret (its value is stored or shown; secrets go into `env`, `url`, `headers` or `body`)
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
    [evaluate]
    4:5 error: `e` has nothing to score (put it after the `run` step that trains)
    4:43 error: no expression is allowed inside `run` (give the value to the command through `env:` and write `"$NAME"` in it)
    4:74 error: `holdout` cannot be `../x` (write a path inside the project, without `..` and a leading `/`)
    4:100 error: `REFIT_MODEL` is refit's own (names that begin with `REFIT_` are set by refit)
    5:14 error: step `f` has both `run` and `uses` (a step does one thing; make two of it)
    6:36 error: `with` has no `run` (add `run:` (the command line, given to `sh -c`))
    6:38 error: unknown key `command` in `with` (keys are: run, working_dir, env, limits, grace, metrics, holdout, from)
    8:55 error: unknown key `outputs` in `with` (keys are: run, working_dir, env, limits, grace, metrics, holdout, from)
    [evaluate-2]
    5:5 error: `from: tt` is no `run` step before `e` (name the step whose files are scored)
    6:80 error: nothing gives the metric `auc` (steps before it give: mae, rmse, r2)
    [shadow]
    4:5 error: `s` asks for `canary`, and none is out by then (put it after a `canary` step)
    4:5 error: `s` has no canary to score (put it after a `canary` step)
    4:34 warning: this step may wait for ever: `until` has no `at_most` (add `at_most: 72h`; what is undecided then follows `on_inconclusive`)
    4:50 error: `from` needs exactly one of `file`, `http`, `postgres`, `sqlite` (remove the others)
    4:73 error: `sqlite` needs exactly one of `query`, `query_file`
    4:95 error: `every` is at least a minute (canaries are looked at every minute; what comes oftener is not seen)
    4:129 error: unknown key `metrics` in `with` (keys are: run, working_dir, env, limits, grace, from, every, for, until, at_most, abort_if)
    5:34 error: `with` has no `from` (add `from:` (where the rows come from, with the columns `id`, `at`, `actual` and perhaps `block`))
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
    4:61 error: a stage of `10%` after one of `50%` (stages ascend, such as `[10%, 25%, 50%]`)
    4:66 error: an entry of `stages` cannot be `101%` (a share of traffic is above 0% and at most 100%)
    [canary-everybody]
    4:5 error: `c` has no version to send traffic to (put a `publish` step before it)
    4:5 error: no rules say when `c` is good or bad (add a `compare` step with the rules)
    4:5 warning: no step after `c` promotes it or rolls it back (add a `promote` step; it promotes, rolls back or holds by the verdict)
    4:61 error: a canary that gets all the traffic is no canary (remove the stage; `promote` gives everybody the version)
    [canary-alone-2]
    4:5 error: `c` has no version to send traffic to (put a `publish` step before it)
    4:5 error: no rules say when `c` is good or bad (add a `compare` step with the rules)
    4:61 error: a stage of `10%` after one of `50%` (stages ascend, such as `[10%, 25%, 50%]`)
    5:5 error: `p` promotes on `q`, and the canary is on `p` (remove `target`; the canary's is meant when it is absent)
    5:5 warning: nothing waits between the canary and `p` (add a `wait` step, or the verdict is taken before there is evidence)
    [promote-alone]
    4:5 error: `promote` has no canary to promote (put a `canary` step before it)
    5:5 error: `wait` asks for `canary`, and none is out by then (put it after a `canary` step)
    5:25 warning: this step may wait for ever: `until` has no `at_most` (add `at_most: 72h`; what is undecided then follows `on_inconclusive`)
    5:43 warning: `canary.verdict` is never `passed` (verdicts are: pass, inconclusive, error, fail)
    6:5 error: `compare` has no canary to compare (put it after a `canary` step)
    [wait]
    4:32 error: this step waits for nothing (add `for: 24h`, or `until:` with a condition and `at_most`)
    4:32 warning: `at_most` has no effect without `until` (remove it, or add `until`)
    5:32 error: `at_most: 1h` is shorter than `for: 3h` (raise `at_most`)
    5:81 error: unknown key `timeout` in step `b` (`timeout` is a key of `run`, `fetch`, `evaluate`, `gate`, `publish`, `canary`, `shadow`, `compare`, `promote`, `rollback`, `notify`, `http` steps)
    [compare]
    4:5 error: `compare` has no canary to compare (put it after a `canary` step)
    4:5 warning: `compare` replays inputs, and there is no command to do it with (add a `shadow` step with a predict command; without one a human is asked at once)
    4:64 error: `alpha` is a probability above 0 and below 0.5
    4:115 error: `worse_by_at_most` cannot be `120pp` (write points above 0pp and below 100pp, such as `0.2pp`)
    4:134 error: `metric` cannot be `errors` (choose one of: error_rate, latency_slow_share, abs_error)
    4:183 error: `worse_by_at_most` of `abs_error` is a percentage (points are of rates; a prediction error has none: write one such as `10%`)
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
        (
            "truth-comes-too-late",
            "[{ metric: error_rate }]",
            "[{ metric: error_rate, label_horizon: 5m }, { metric: abs_error, label_horizon: 60m }]",
        ),
        (
            "truth-comes-too-late-but-only-observes",
            "[{ metric: error_rate }]",
            "[{ metric: error_rate }, { metric: abs_error, label_horizon: 1d, mode: observe }]",
        ),
        (
            "blocks-are-complete-too-late",
            "uses: wait, with: { for: 1h } }\n- { id: compare, uses: compare, with: { rules: [{ metric: error_rate }]",
            "uses: shadow, with: { run: predict, from: { sqlite: { path: a.db, query: SELECT race AS block FROM r } }, for: 26h } }\n- { id: compare, uses: compare, with: { rules: [{ metric: abs_error, label_horizon: 2h }]",
        ),
        (
            "shadow-without-a-rule",
            "uses: wait, with: { for: 1h }",
            "uses: shadow, with: { run: predict, from: { file: rows.csv }, for: 1h }",
        ),
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
    [truth-comes-too-late]
    8:88 error: `label_horizon` does not fit `error_rate` (only `abs_error` waits for truth; a request that fails or is slow says so at once)
    8:94 error: no request is 1h old when the canary has to be decided, 1h after its start (give the canary more time, shorten `label_horizon`, or let the rule only observe: `mode: observe`)
    [truth-comes-too-late-but-only-observes]

    [blocks-are-complete-too-late]
    8:51 warning: no block is complete when the canary has to be decided, 1d2h after its start: one is bet on once nothing of it came of age for 1d, here no sooner than after 1d2h (give the canary more time, or shorten `label_horizon`)
    [shadow-without-a-rule]
    7:5 warning: no rule looks at the prediction errors that `wait` finds (add a rule on `abs_error` to `compare`)
    "#);
}
