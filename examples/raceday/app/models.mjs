// The files of a version: fetched from where the release document says, checked against the
// manifest it names, kept in memory. The newest three versions stay.

import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { load, predict } from "./xgboost.mjs";

const KEPT = 3;
const loading = new Map();

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

async function read({ base_url, manifest_sha256 }) {
  const text = await get(`${base_url}/manifest.json`);
  if (manifest_sha256 && sha256(text) !== manifest_sha256) throw new Error(`${base_url}: the manifest is not the released one`);
  const models = {};
  for (const { path, sha256: wanted } of JSON.parse(text).files) {
    const body = await get(`${base_url}/${path}`);
    if (sha256(body) !== wanted) throw new Error(`${base_url}/${path} is not what was published`);
    models[path.replace(/\.json$/, "")] = load(JSON.parse(body));
  }
  return models;
}

function legs(models, distance, values) {
  const found = {};
  for (const [name, model] of Object.entries(models))
    if (name.startsWith(`${distance}-`)) found[name.slice(distance.length + 1)] = Math.round(predict(model, values) * 10) / 10;
  if (!Number.isFinite(found.finish)) throw new Error(`there is no model for ${distance}`);
  return found;
}

async function get(url) {
  if (!/^https?:/.test(url)) return readFile(url.replace(/^file:\/\//, ""));
  const response = await fetch(url, { signal: AbortSignal.timeout(30_000) });
  if (!response.ok) throw new Error(`${url} answers ${response.status}`);
  return Buffer.from(await response.arrayBuffer());
}

const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");
