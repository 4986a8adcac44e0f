// refit in an app on Vercel (edge and Node), Cloudflare Workers or Node >= 18.
// Copy this file; it needs nothing else.
//
//   Releases   follows the release document: which version serves this request
//   Reports    tells refit what was served, in batches
//
// Neither ever throws into a prediction, and neither makes it wait for a refit
// that is down: without a document the built-in version serves, and reports
// that cannot be delivered are dropped and counted.

/** A version, as an app finds it. */
export interface Version {
  version: string;
  /** URL below which its files are. */
  base_url: string;
  /** SHA-256 of its manifest.json in lower-case hex. */
  manifest_sha256?: string;
}

/** A version that serves a share of the units. */
export interface Canary extends Version {
  /** Its share: 1,000 are 10 %. */
  basis_points: number;
  salt: string;
  /** RFC 3339; from then on it serves nobody. */
  valid_until: string;
}

/** What refit writes, as far as an app needs it. */
export interface ReleaseDocument {
  champion: Version | null;
  canary: Canary | null;
}

/** Who serves one request. */
export interface Route {
  arm: "champion" | "canary" | "built-in";
  serve: Version;
  /** What to answer with when `serve` is a canary that fails. */
  stable: Version;
}

/** What both halves take. */
interface Common {
  /** Sent as `Authorization: Bearer …`. */
  token?: string | undefined;
  /** Keeps an edge runtime awake until a promise settles: `waitUntil` of @vercel/functions or of cloudflare:workers. */
  waitUntil?: ((promise: Promise<unknown>) => void) | undefined;
  /** Told what went wrong behind the scenes; `console.warn` when absent. */
  onTrouble?: ((what: string) => void) | undefined;
}

export interface ReleasesOptions extends Common {
  /** `GET /v1/models/{model}/release` of refit, a public object, or `globalConfig(…)`. */
  url: string;
  /** Serves a cold start that finds no document; ship its files with the app. */
  builtIn: Version;
  /** For so long a document is not asked for again. */
  ttlMs?: number;
  /** For so long after that, the old one is used while the new one is fetched. */
  staleMs?: number;
  /** A prediction waits so long at most, and only when it has no document that is young enough. */
  timeoutMs?: number;
}

/** No release document is longer. */
const LONGEST = 256 * 1024;

export class Releases {
  readonly #options: Required<Pick<ReleasesOptions, "ttlMs" | "staleMs" | "timeoutMs">> & ReleasesOptions;
  #good: ReleaseDocument | undefined; // the last one that made sense
  #etag: string | null = null;
  #goodAt = -Infinity; // when it was last known to be the newest
  #nextAt = -Infinity; // no attempt begins before: one is under way, or the last one failed
  #asking: Promise<void> = Promise.resolve();
  #failing = false;

  constructor({ ttlMs = 15_000, staleMs = 60_000, timeoutMs = 1_000, ...options }: ReleasesOptions) {
    this.#options = { ttlMs, staleMs, timeoutMs, ...options };
  }

  /** Who serves `unit`: the same one every time, for a user or a session. No unit means the champion. */
  async route(unit?: string | null): Promise<Route> {
    const document = await this.document();
    const stable = document?.champion ?? this.#options.builtIn;
    const canary = document?.canary;
    if (canary && (await routesToCanary(canary, unit, Date.now()))) return { arm: "canary", serve: canary, stable };
    return { arm: document?.champion ? "champion" : "built-in", serve: stable, stable };
  }

  /** The last good document; `undefined` before the first. */
  async document(): Promise<ReleaseDocument | undefined> {
    const { ttlMs, staleMs, timeoutMs } = this.#options;
    const now = Date.now();
    const age = now - this.#goodAt;
    if (age >= ttlMs && now >= this.#nextAt) {
      // Should the runtime freeze or cancel this attempt, the next one may begin after all.
      this.#nextAt = now + 2 * timeoutMs;
      this.#asking = this.#ask(now);
      keepAwake(this.#options, this.#asking);
    }
    // Only the first to meet a dead server waits for it; while it is dead nobody does.
    if (age >= ttlMs + staleMs && !this.#failing && !(await within(timeoutMs, this.#asking))) this.#failing = true;
    return this.#good;
  }

  async #ask(now: number): Promise<void> {
    const { url, token, ttlMs, timeoutMs } = this.#options;
    try {
      const headers = new Headers({ accept: "application/json" });
      if (token) headers.set("authorization", `Bearer ${token}`);
      if (this.#good && this.#etag) headers.set("if-none-match", this.#etag);
      const response = await fetch(url, { headers, cache: "no-store", signal: AbortSignal.timeout(timeoutMs) });
      if (response.status !== 304 || !this.#good) {
        if (!response.ok) throw new Error(`it answers ${response.status}`);
        if (Number(response.headers.get("content-length")) > LONGEST) throw new Error("it is too long");
        this.#good = checked(JSON.parse(await response.text()));
        this.#etag = response.headers.get("etag");
      }
      this.#goodAt = now;
      this.#nextAt = -Infinity;
      this.#failing = false;
    } catch (error) {
      this.#failing = true;
      this.#nextAt = Date.now() + ttlMs;
      complain(this.#options, `refit: no release document from ${place(url)}: ${said(error)}`);
    }
  }
}

/** The bucket of a unit, 0 to 9,999: the same in every language. */
export async function bucket(salt: string, unit: string): Promise<number> {
  const { subtle } = await webCrypto();
  const digest = await subtle.digest("SHA-256", new TextEncoder().encode(`${salt}:${unit}`));
  return new DataView(digest).getUint32(0) % 10_000; // the first four bytes, big-endian
}

/** Whether the canary serves `unit` at `now` (milliseconds since 1970). */
export async function routesToCanary(canary: Canary, unit: string | null | undefined, now: number): Promise<boolean> {
  if (unit == null || !(now < Date.parse(canary.valid_until))) return false;
  return (await bucket(canary.salt, unit)) < canary.basis_points;
}

/** Where an item of Vercel Global Config is read, by the connection string in `process.env.GLOBAL_CONFIG`. */
export function globalConfig(connection: string, key: string): { url: string; token: string } {
  const { origin, pathname, searchParams } = new URL(connection);
  return { url: `${origin}${pathname}/item/${key}?version=1`, token: searchParams.get("token") ?? "" };
}

/** The document, if an app can route by it. */
function checked(value: unknown): ReleaseDocument {
  const { champion = null, canary = null } = object(value, "the document");
  if (champion !== null) version(champion, "champion");
  if (canary !== null) {
    const { salt, basis_points: share, valid_until: until } = version(canary, "canary");
    if (typeof salt !== "string") throw new Error("canary.salt is not text");
    if (!Number.isInteger(share) || (share as number) < 0 || (share as number) > 10_000)
      throw new Error("canary.basis_points is not a whole number from 0 to 10,000");
    if (typeof until !== "string" || Number.isNaN(Date.parse(until))) throw new Error("canary.valid_until is no time");
  }
  return value as ReleaseDocument;
}

function version(value: unknown, name: string): Record<string, unknown> {
  const found = object(value, name);
  for (const key of ["version", "base_url"])
    if (typeof found[key] !== "string") throw new Error(`${name}.${key} is not text`);
  return found;
}

function object(value: unknown, name: string): Record<string, unknown> {
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw new Error(`${name} is not an object`);
  return value as Record<string, unknown>;
}

// --- Reports ------------------------------------------------------------------

/** One served prediction. */
export interface Observation {
  /** The truth is joined to it by this, when it comes. */
  request_id: string;
  /** Of `Route.serve`, also when another version had to answer. */
  version: string;
  ok: boolean;
  /** Whom the route was taken for. */
  unit?: string | null | undefined;
  latency_ms?: number | undefined;
  /** The number, to be compared with its truth. */
  prediction?: number | null | undefined;
  /** What other versions predicted for the same request, by version. */
  shadow?: Record<string, number> | undefined;
  /** The first answer of a new process: its latency says nothing of the model. */
  cold?: boolean | undefined;
  /** RFC 3339; now, when absent. */
  at?: string | undefined;
}

export interface ReportsOptions extends Common {
  /** Where refit is: `https://refit.example.com`. */
  url: string;
  model: string;
  /** A batch leaves after so long, or when it is full. With `waitUntil` it leaves at once. */
  flushMs?: number;
  /** Rows of a full batch. */
  batchRows?: number;
  /** Rows kept while refit does not answer; then the oldest are dropped. */
  capacity?: number;
  /** One attempt takes so long at most. */
  timeoutMs?: number;
}

/** Rows on their way: sent again under the same id they are counted once. */
interface Batch {
  id?: string;
  rows: string[];
  attempts: number;
  cutAt: number;
  /** Not sent before: an attempt is under way, or failed a moment ago. */
  dueAt: number;
}

/** refit believes the time of a row for so long; an older one would count in the wrong minute. */
const BELIEVED_MS = 10 * 60_000;

export class Reports {
  /** Rows that never reached refit. */
  dropped = 0;
  readonly #options: Required<Omit<ReportsOptions, keyof Common>> & ReportsOptions;
  #rows: string[] = [];
  #batch: Batch | undefined;
  #sending: Promise<void> | undefined;
  #timer: unknown;

  constructor({ flushMs = 5_000, batchRows = 500, capacity = 10_000, timeoutMs = 5_000, ...options }: ReportsOptions) {
    this.#options = { flushMs, batchRows, capacity, timeoutMs, ...options };
  }

  /** Keeps a row to be sent; returns at once and never throws. */
  observe(row: Observation): void {
    const { batchRows, capacity, timeoutMs, waitUntil } = this.#options;
    try {
      this.#rows.push(JSON.stringify({ ...row, at: row.at ?? new Date(Date.now()).toISOString() }));
    } catch (error) {
      this.dropped += 1; // no JSON
      complain(this.#options, `refit: an observation was dropped: ${said(error)}`);
    }
    if (this.#rows.length > capacity) {
      this.#rows.shift();
      this.dropped += 1;
    }
    if (waitUntil) keepAwake(this.#options, this.flush(2 * timeoutMs));
    else if (this.#rows.length >= batchRows) void this.flush();
    this.#arm();
  }

  /** Sends what is kept. What fails is tried again for `withinMs`, then left to the next flush. Never rejects. */
  async flush(withinMs = 0): Promise<void> {
    const until = Date.now() + withinMs;
    await Promise.resolve(); // rows of this moment go together
    for (;;) {
      const batch = (this.#batch ??= this.#cut());
      if (!batch) return;
      const now = Date.now();
      if (now >= batch.dueAt) {
        this.#sending = this.#send(batch);
        await this.#sending;
        this.#sending = undefined;
      } else if (now < until) {
        await within(Math.min(batch.dueAt, until) - now, this.#sending);
      } else return;
    }
  }

  #cut(): Batch | undefined {
    const rows = this.#rows.splice(0, this.#options.batchRows);
    return rows.length ? { rows, attempts: 0, cutAt: Date.now(), dueAt: 0 } : undefined;
  }

  async #send(batch: Batch): Promise<void> {
    const { url, model, token, timeoutMs } = this.#options;
    batch.attempts += 1;
    batch.dueAt = Date.now() + 2 * timeoutMs; // unless the runtime loses this attempt, it has ended by then
    let trouble: string;
    let again = true;
    let delay = Math.min(30_000, 250 * 2 ** batch.attempts) * (0.5 + Math.random());
    try {
      batch.id ??= (await webCrypto()).randomUUID();
      const headers = new Headers({ "content-type": "application/x-ndjson", "idempotency-key": batch.id });
      if (token) headers.set("authorization", `Bearer ${token}`);
      const response = await fetch(`${url.replace(/\/+$/, "")}/v1/models/${encodeURIComponent(model)}/observations`, {
        method: "POST",
        headers,
        body: batch.rows.join("\n") + "\n",
        signal: AbortSignal.timeout(timeoutMs),
      });
      const answer = await response.text();
      if (response.ok) return this.#done(batch, answer);
      trouble = `it answers ${response.status}`;
      again = response.status === 408 || response.status === 429 || response.status >= 500;
      delay = Math.max(delay, 1000 * Number(response.headers.get("retry-after") ?? 0) || 0);
    } catch (error) {
      trouble = said(error);
    }
    if (again && Date.now() + delay < batch.cutAt + BELIEVED_MS) {
      batch.dueAt = Date.now() + delay;
      complain(this.#options, `refit: observations are kept for now, ${place(url)} does not take them: ${trouble}`);
    } else if (this.#batch === batch) {
      this.#batch = undefined;
      this.dropped += batch.rows.length;
      complain(this.#options, `refit: ${batch.rows.length} observations were dropped: ${trouble}`);
    }
  }

  #done(batch: Batch, answer: string): void {
    if (this.#batch === batch) this.#batch = undefined;
    const refused = /"refused":([1-9]\d*)/.exec(answer);
    if (refused) complain(this.#options, `refit: ${refused[1]} observations make no sense to it: ${answer.slice(0, 500)}`);
  }

  /** Looks again later; never keeps a process alive. */
  #arm(): void {
    this.#timer ??= setTimeout(async () => {
      await this.flush();
      this.#timer = undefined;
      if (this.#batch || this.#rows.length) this.#arm();
    }, this.#options.flushMs);
    (this.#timer as { unref?: () => void }).unref?.();
  }
}

// --- What both need -----------------------------------------------------------

/** Waits for `promise`, at most `ms`; whether it came. */
async function within(ms: number, promise: Promise<unknown> = new Promise(() => {})): Promise<boolean> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<boolean>((resolve) => (timer = setTimeout(() => resolve(false), ms)));
  try {
    return await Promise.race([promise.then(() => true), late]);
  } finally {
    clearTimeout(timer);
  }
}

/** A global everywhere but in Node 18; bundlers must not look for Node's module. */
async function webCrypto(): Promise<Crypto> {
  const name: string = "node:crypto";
  return globalThis.crypto ?? (await import(/* webpackIgnore: true */ /* @vite-ignore */ name)).webcrypto;
}

function keepAwake({ waitUntil }: Common, promise: Promise<unknown>): void {
  try {
    waitUntil?.(promise);
  } catch {
    // Outside a request there is nothing to keep awake.
  }
}

function complain({ onTrouble = console.warn }: Common, what: string): void {
  try {
    onTrouble(what);
  } catch {
    // Whoever listens must not break a prediction either.
  }
}

/** Never the query: it may hold a token. */
const place = (url: string): string => url.split("?")[0] ?? url;

const said = (error: unknown): string => {
  const cause = error instanceof Error && error.cause instanceof Error ? `: ${error.cause.message}` : "";
  return error instanceof Error ? error.message + cause : String(error);
};
