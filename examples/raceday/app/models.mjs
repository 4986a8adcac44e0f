// The files of a version: fetched from where the release document says, checked against the
// manifest it names, kept in memory. The newest three versions stay. A version that was uploaded
// before refit came, and adopted, has no manifest beside it: it is loaded as it always was, but only
// when ADOPTED_VERSIONS names it. Of any other a manifest that is missing is an error.

import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { load, predict } from "./xgboost.mjs";

const KEPT = 3;
const loading = new Map();
const ADOPTED = (process.env.ADOPTED_VERSIONS ?? "").split(/[\s,]+/);
/** What every version has: the names are the app's own. */
const FILES = ["sprint", "olympic", "70.3", "140.6"]
  .flatMap((distance) => ["swim", "bike", "run", "finish"].map((leg) => `${distance}-${leg}.json`))
  .concat("70.3-finish_p90.json", "140.6-finish_p90.json");

/** `{cold, legs(distance, values)}` of a version; loaded once, whoever asks. Cold: it had to be waited for. */
export async function model(version) {
  const key = `${version.version} ${version.base_url}`;
  let found = loading.get(key);
  if (!found) {
    found = { models: read(version), loaded: false };
    loading.set(key, found);
    found.models.then(() => (found.loaded = true), () => loading.delete(key)); // tried again by the next request
    for (const old of [...loading.keys()].slice(0, -KEPT)) loading.delete(old);
  }
  const cold = !found.loaded; // also whoever came while it was loaded had to wait
  const models = await found.models;
  return { cold, legs: (distance, values) => legs(models, distance, values) };
}

async function read(version) {
  const { base_url } = version;
  const models = {};
  for (const { path, sha256: wanted } of await files(version)) {
    const body = await get(`${base_url}/${path}`);
    if (wanted && sha256(body) !== wanted) throw new Error(`${base_url}/${path} is not what was published`);
    models[path.replace(/\.json$/, "")] = load(JSON.parse(body));
  }
  return models;
}

/** The files with their hashes; without those of versions that may have no manifest: adopted ones, and the app's own. */
async function files({ version, base_url, manifest_sha256 }) {
  const text = await get(`${base_url}/manifest.json`).catch((error) => {
    if (error.isMissing && (!manifest_sha256 || ADOPTED.includes(version))) return null;
    throw error;
  });
  if (text === null) return FILES.map((path) => ({ path }));
  if (manifest_sha256 && sha256(text) !== manifest_sha256) throw new Error(`${base_url}: the manifest is not the released one`);
  return JSON.parse(text).files;
}

function legs(models, distance, values) {
  const found = {};
  for (const [name, model] of Object.entries(models))
    if (name.startsWith(`${distance}-`)) found[name.slice(distance.length + 1)] = Math.round(predict(model, values) * 10) / 10;
  if (!Number.isFinite(found.finish)) throw new Error(`there is no model for ${distance}`);
  return found;
}

async function get(url) {
  if (!/^https?:/.test(url)) {
    return readFile(url.replace(/^file:\/\//, "")).catch((error) => {
      throw Object.assign(error, { isMissing: error.code === "ENOENT" });
    });
  }
  const response = await fetch(url, { signal: AbortSignal.timeout(30_000) });
  if (!response.ok) throw Object.assign(new Error(`${url} answers ${response.status}`), { isMissing: response.status === 404 });
  return Buffer.from(await response.arrayBuffer());
}

const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");
