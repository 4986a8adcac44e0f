// Lets a test call the TypeScript client: one JSON command a line, one JSON answer a line.
//   node driver.mjs path/to/refit.js
import { createInterface } from "node:readline";
import { readFileSync } from "node:fs";

const { Releases, Reports, bucket, globalConfig, routesToCanary } = await import(process.argv[2]);
const troubles = [];
const awaited = [];
let releases, reports;

const commands = {
  make(given) {
    const common = {
      token: given.token,
      onTrouble: (what) => {
        troubles.push(what);
        throw new Error("a listener that fails");
      },
      waitUntil: given.wait_until ? (promise) => void awaited.push(promise) : undefined,
    };
    const document = given.connection ? globalConfig(given.connection, given.key) : { url: given.document_url };
    releases = new Releases({
      ...common, ...document, builtIn: { version: "built-in", base_url: "/models" },
      ttlMs: given.ttl_ms, staleMs: given.stale_ms, timeoutMs: given.timeout_ms,
    });
    reports = new Reports({
      ...common, url: given.refit_url, model: given.model, flushMs: given.flush_ms,
      batchRows: given.batch_rows, capacity: given.capacity, timeoutMs: given.timeout_ms,
    });
    return null;
  },
  async route(unit) {
    const { arm, serve, stable } = await releases.route(unit);
    return { arm, version: serve.version, stable: stable.version };
  },
  async routes(units) {
    return Promise.all(units.map((unit) => commands.route(unit)));
  },
  observe(rows) {
    for (const row of rows) reports.observe(row);
    return null;
  },
  observe_nonsense() {
    const circle = { request_id: "circle", version: "v1", ok: true };
    circle.shadow = circle;
    reports.observe(circle);
    return null;
  },
  async flush(ms) {
    await reports.flush(ms);
    return null;
  },
  async awaited() {
    await Promise.all(awaited);
    return awaited.length;
  },
  dropped: () => reports.dropped,
  troubles: () => troubles,
  async vectors(path) {
    const { buckets, routes } = JSON.parse(readFileSync(path, "utf8"));
    return {
      buckets: await Promise.all(buckets.map(({ salt, unit }) => bucket(salt, unit))),
      routes: await Promise.all(routes.map(({ canary, unit, now }) => routesToCanary(canary, unit, Date.parse(now)))),
    };
  },
  half_a_pair: () => bucket("salt", "\ud83c"),
};

for await (const line of createInterface({ input: process.stdin })) {
  const [[name, given]] = Object.entries(JSON.parse(line));
  console.log(JSON.stringify((await commands[name](given)) ?? null));
}
