// Runs a study through the types that openapi-typescript makes of openapi/openapi.json. For scripts/test-clients.
//
//     node submit.js http://127.0.0.1:8080 [TOKEN]
//
// openapi-typescript with openapi-fetch, because it makes types and no code of its own: what is sent and read is checked by
// the compiler against the document itself, and nothing is renamed.
import { randomUUID } from "node:crypto";
import createClient from "openapi-fetch";
import type { components, paths } from "./trialhead.js";

type Schemas = components["schemas"];

const patienceSecs = 900;
const grades: Record<Schemas["Grade"], true> = { high: true, moderate: true, low: true };

const [url, token] = process.argv.slice(2);
if (url === undefined) throw new Error("usage: submit.js URL [TOKEN]");
const client = createClient<paths>({
    baseUrl: url,
    headers: token === undefined ? {} : { authorization: `Bearer ${token}` },
});

function expect(holds: boolean, what: unknown): asserts holds {
    if (!holds) {
        console.error("submit.ts: not as expected:", what);
        process.exit(1);
    }
}

/** The digits, two batch sizes, two questions: less than half a minute. */
function definition(smallest: number): Schemas["StudyRequest"] {
    return {
        name: "digits, by a TypeScript client",
        workload: {
            dataset: { builtin: "digits" },
            model: { family: "mlp", hidden: [32] },
        },
        batch_sizes: { min: smallest, max: 128 },
        device: { backend: "cpu", memory_budget_bytes: 2 ** 30 },
        questions: ["feasible_batch_sizes", "throughput"],
        budget: { device_secs: 15, probes: 40 },
        reuse: false,
        seed: 8,
    };
}

function hasEnded(study: Schemas["Study"]): boolean {
    return study.state === "succeeded" || study.state === "failed" || study.state === "cancelled";
}

/** Asks again with the ETag of the answer before: each answer comes when something is new. */
async function waitForEnd(accepted: Schemas["Study"]): Promise<Schemas["Study"]> {
    let study = accepted;
    let etag: string | undefined;
    let unchanged = 0;
    const began = Date.now();
    while (!hasEnded(study)) {
        expect(Date.now() - began < patienceSecs * 1000, `an end in ${patienceSecs} s: ${study.state}`);
        const { data, response } = await client.GET("/v1/studies/{id}", {
            params: {
                path: { id: study.id },
                query: { wait_secs: 10 },
                header: etag === undefined ? {} : { "If-None-Match": etag },
            },
        });
        if (response.status === 304) {
            unchanged += 1;
            continue;
        }
        expect(data !== undefined, response.status);
        study = data;
        etag = response.headers.get("etag") ?? undefined;
    }
    console.log(`   ${study.state}: ${study.ended_detail} (${unchanged} times nothing new in 10 s)`);
    return study;
}

async function create(body: Schemas["StudyRequest"], key: string) {
    return await client.POST("/v1/studies", { body, params: { header: { "Idempotency-Key": key } } });
}

/** A study that cannot be run comes back with a pointer to what is wrong. */
async function refused(): Promise<void> {
    const { error, response } = await create(definition(0), randomUUID());
    expect(response.status === 422 && error !== undefined, response.status);
    const pointers = (error.errors ?? []).map((violation) => violation.pointer);
    expect(error.code === "invalid_study" && pointers.join() === "/batch_sizes/min", error);
    console.log(`   refused: ${error.errors?.[0]?.pointer}: ${error.errors?.[0]?.detail}`);
}

/** What is recommended, and 304 for whoever has it. */
async function recommendations(study: Schemas["Study"]): Promise<void> {
    const path = { id: study.id };
    const { data, response } = await client.GET("/v1/studies/{id}/recommendations", { params: { path } });
    expect(data !== undefined && data.items.length >= 2, response.status);
    for (const item of data.items) {
        console.log(`   ${item.topic} (${item.confidence.grade}, ${item.evidence.length} probes): ${item.summary}`);
        expect(grades[item.confidence.grade], item.confidence);
        expect(item.study_id === study.id && !item.stale, item.id);
        expect(item.summary !== "" && item.confidence.because !== "" && item.evidence.length > 0, item);
        expect(Object.keys(item.value).length > 0, item.value);
    }
    const etag = response.headers.get("etag");
    expect(etag !== null, "an ETag");
    const again = await client.GET("/v1/studies/{id}/recommendations", {
        params: { path, header: { "If-None-Match": etag } },
    });
    expect(again.response.status === 304, again.response.status);
    console.log("   the same again: 304");
}

/** Every study, one on a page. */
async function pages(): Promise<string[]> {
    const ids: string[] = [];
    let next: string | undefined;
    do {
        const query = next === undefined ? { page_size: 1 } : { page_size: 1, page_token: next };
        const { data, response } = await client.GET("/v1/studies", { params: { query } });
        expect(data !== undefined && data.items.length <= 1, response.status);
        ids.push(...data.items.map((item) => item.id));
        next = data.next_page_token ?? undefined;
    } while (next !== undefined);
    return ids;
}

const key = randomUUID();
const first = await create(definition(64), key);
const again = await create(definition(64), key);
expect(first.response.status === 202 && first.data !== undefined && "id" in first.data, first.error);
expect(again.data !== undefined && "id" in again.data && again.data.id === first.data.id, "one study for one key");
expect(again.response.headers.get("idempotency-replayed") === "true", "a replayed answer");
console.log(`   accepted: ${first.data.id}, and the same for the same key`);
await refused();
const study = await waitForEnd(first.data);
expect(study.state === "succeeded", study);
await recommendations(study);
const ids = await pages();
expect(ids.includes(study.id) && new Set(ids).size === ids.length, ids);
console.log(`   ${ids.length} pages of one study each`);
console.log("TYPESCRIPT CLIENT: fine");
