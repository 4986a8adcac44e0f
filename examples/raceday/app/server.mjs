// RaceDay's app, without its pages: what a Next.js project on Vercel has in app/api/*/route.ts.
//
//   POST /api/predict   {"athlete", "distance", "age", "is_female", …}: finish and legs in seconds
//   GET  /api/version   which versions serve here; `verify:` of a target may ask
//
// Settings, all by environment:
//   REFIT_CLIENT        the compiled client (default ./refit.js): tsc examples/clients/typescript/refit.ts
//   GLOBAL_CONFIG       Vercel's connection string, and GLOBAL_CONFIG_KEY, the item; or
//   RELEASE_URL         where the release document is
//   BUILT_IN            a directory with the models shipped with the app (default ./models)
//   ADOPTED_VERSIONS    versions from before refit, which have no manifest: 2026-11-06 2026-11-13
//   REFIT_URL           where refit is; REFIT_TOKEN, its token; MODEL (default race-times)
//   APP_DATABASE_URL    for the table of predictions
//   PORT                0 takes a free one; the first line on stdout is {"listening": port}

import { randomUUID } from "node:crypto";
import { createServer } from "node:http";
import { pathToFileURL } from "node:url";
import { model } from "./models.mjs";
import { table } from "./table.mjs";

const { env } = process;
const FEATURES = ["age", "is_female", "swim_pace_s", "bike_kmh", "run_pace_s", "temp_c", "climb_m"];
const MODEL = env.MODEL ?? "race-times";
const LONGEST = 64 * 1024;

const { Releases, Reports, globalConfig } = await import(pathToFileURL(env.REFIT_CLIENT ?? "refit.js").href);
const switches = env.RACEDAY_SWITCHES === "1" ? await import("./switches.mjs") : undefined;
const token = env.REFIT_TOKEN;
const document = env.GLOBAL_CONFIG ? globalConfig(env.GLOBAL_CONFIG, env.GLOBAL_CONFIG_KEY ?? MODEL) : { url: env.RELEASE_URL, token };
const releases = new Releases({ ...document, builtIn: { version: "built-in", base_url: env.BUILT_IN ?? "models" } });
const reports = new Reports({ url: env.REFIT_URL ?? "http://127.0.0.1:7070", token, model: MODEL });
const predictions = await table(env.APP_DATABASE_URL);

async function predict(input) {
  const values = FEATURES.map((name) => (typeof input[name] === "number" ? input[name] : NaN));
  const unit = input.athlete === undefined ? null : String(input.athlete);
  const route = await releases.route(unit);
  const request = { requestId: randomUUID(), athleteId: unit, distance: String(input.distance), arm: route.arm };
  try {
    return await served(route.serve, request, values);
  } catch (error) {
    if (route.arm !== "canary") throw error;
    // Nobody goes without an answer because of a canary. Its failure was reported; this answer is not.
    const { legs } = await model(route.stable);
    return { version: route.stable.version, arm: "champion", predicted: legs(request.distance, values) };
  }
}

/** One prediction by one version, written to the table and reported. */
async function served({ version, base_url, manifest_sha256 }, request, values) {
  const started = performance.now();
  const told = { cold: false };
  const tell = (error, finish) => {
    const durationMs = told.durationMs ?? performance.now() - started;
    predictions.write({
      ...request, predictionTime: new Date(Date.now()).toISOString(), modelVersion: version,
      finishS: finish, durationMs, error, cold: told.cold,
    });
    reports.observe({
      request_id: request.requestId, unit: request.athleteId, version, ok: !error,
      latency_ms: durationMs, prediction: finish, cold: told.cold,
    });
  };
  try {
    await switches?.before(version, Math.random(), told);
    const { cold, legs } = await model({ version, base_url, manifest_sha256 });
    told.cold = cold;
    const predicted = legs(request.distance, values);
    tell(null, predicted.finish);
    return { version, arm: request.arm, predicted };
  } catch (error) {
    if (!error.silent) tell(error.message, null);
    throw error;
  }
}

const routes = {
  "POST /api/predict": predict,
  "GET /api/version": async () => {
    const found = await releases.document();
    return { version: (found?.champion ?? { version: "built-in" }).version, canary: found?.canary?.version ?? null };
  },
  ...(switches && { "POST /api/switches": (given) => switches.turn(given, reports) }),
};

async function body(request) {
  if (request.method === "GET") return {};
  let text = "";
  for await (const chunk of request.setEncoding("utf8")) {
    text += chunk;
    if (text.length > LONGEST) throw Object.assign(new Error("the body is too long"), { status: 413 });
  }
  try {
    return Object(JSON.parse(text));
  } catch {
    throw Object.assign(new Error("the body is not JSON"), { status: 400 });
  }
}

const server = createServer(async (request, response) => {
  const reply = (status, value) => response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(value));
  const handler = routes[`${request.method} ${request.url.split("?")[0]}`];
  if (!handler) return reply(404, { detail: "there is no such page" });
  try {
    reply(200, await handler(await body(request)));
  } catch (error) {
    reply(error.status ?? 500, { detail: error.message });
  }
});

server.listen(Number(env.PORT ?? 3000), "127.0.0.1", () => console.log(JSON.stringify({ listening: server.address().port })));
process.on("SIGTERM", async () => {
  server.close();
  await reports.flush(2_000);
  await predictions.close();
  process.exit(0);
});
