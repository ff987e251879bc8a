// The engine, live: polled while somebody looks.

import { call } from "./api.js";
import { Chart, key } from "./chart.js";
import { el, find } from "./dom.js";
import { duration } from "./message.js";

const POLL_MS = 1000;
const SLOW_POLL_MS = 2500; // while the server does not answer
const KEPT = 180; // samples
const RECENT = 3; // seconds that "now" is the mean of, where one second says little

const whole = (value) => Math.round(value).toLocaleString("en");
const seconds = (value) => (value === 0 ? "0" : duration(value));
const share = (value) => `${(100 * value).toFixed(value > 0 && value < 0.1 ? 1 : 0)}%`;
const gib = (bytes) => `${(bytes / 2 ** 30).toPrecision(2)} GiB`;
const at = (percentiles, i) => (percentiles ? percentiles[i] : null);
const quantiles = (field) => [
  { label: "p50", value: (sample) => at(sample[field], 0) },
  { label: "p95", value: (sample) => at(sample[field], 1) },
];

function hitRate({ prefix_queries: queries, prefix_hits: hits }) {
  return queries ? hits / queries : null;
}

const CHARTS = {
  throughput: {
    title: "Tokens per second",
    className: "wide",
    hasArea: true,
    format: whole,
    series: [
      { label: "generated", value: (sample) => sample.num_generation_tokens },
      { label: "prompt", value: (sample) => sample.num_prompt_tokens },
    ],
  },
  requests: {
    title: "Requests",
    className: "wide",
    hasArea: true,
    format: whole,
    series: [
      { label: "running", value: (sample) => sample.num_running },
      { label: "waiting", value: (sample) => sample.num_waiting },
    ],
  },
  first: {
    title: "Time to first token",
    format: seconds,
    series: quantiles("time_to_first_token"),
  },
  between: { title: "Inter-token latency", format: seconds, series: quantiles("inter_token") },
  step: { title: "Step time", format: seconds, series: quantiles("step") },
  hits: {
    title: "Prefix-cache hits",
    format: share,
    highest: 1,
    series: [{ label: "of prompt", value: hitRate }],
  },
  kv: {
    title: "KV blocks in use",
    hasArea: true,
    format: whole,
    series: [{ label: "blocks", value: (sample) => sample.num_used_blocks }],
  },
  preemptions: {
    title: "Preemptions",
    format: whole,
    series: [{ label: "since the start", value: (sample) => sample.num_preemptions }],
  },
};

class BlockBar {
  constructor() {
    this.used = el("i", { class: "used" });
    this.cached = el("i", { class: "cached" });
    this.text = el("p", {});
    this.percent = el("span", { class: "limit" });
    const facts = { "aria-label": "KV blocks in use", "aria-valuemin": 0 };
    this.meter = el("div", { class: "meter", role: "meter", ...facts }, this.used, this.cached);
    this.node = el(
      "figure",
      { class: "chart wide" },
      el("figcaption", {}, el("span", {}, "KV cache"), this.percent),
      this.text,
      this.meter,
    );
  }

  show({ num_used_blocks: used, num_cached_blocks: cached, num_blocks: total }) {
    // Blocks in use may be known to the cache as well; the bar shows what is kept beyond these.
    const kept = Math.max(0, cached - used);
    this.used.style.width = `${(100 * used) / Math.max(total, 1)}%`;
    this.cached.style.width = `${(100 * kept) / Math.max(total, 1)}%`;
    this.meter.setAttribute("aria-valuemax", total);
    this.meter.setAttribute("aria-valuenow", used);
    this.percent.textContent = share(used / Math.max(total, 1));
    const part = (name, value, label) => key(name, el("b", {}, whole(value)), label);
    this.text.replaceChildren(
      part("key-0", used, "used"),
      part("key-2", cached, "cached"),
      part("key-none", total, "blocks"),
    );
  }
}

function enginesOf({ num_engines: count }) {
  return count > 1 ? [["Engines", whole(count)]] : [];
}

// Ranks of an engine share the weights; what each has of the KV cache, the others have of theirs.
function ranksOf(ranks) {
  if (ranks.length < 2) return [];
  const most = (part) => gib(Math.max(...ranks.map((rank) => rank[part])));
  const each = `${most("weights")} of weights and ${most("kv_cache")} of KV cache each`;
  return [["Ranks", `${ranks.length}, ${each}`]];
}

export class LiveView {
  // onanswer(answer) is told every answer, null when there was none.
  constructor(onanswer) {
    this.onanswer = onanswer;
    this.samples = [];
    this.timer = 0;
    this.isPolling = false;
    this.pointed = null;
    this.facts = el("dl", { id: "facts" });
    this.bar = new BlockBar();
    const onpoint = (age) => this.point(age);
    this.charts = Object.fromEntries(
      Object.entries(CHARTS).map(([name, options]) => [name, new Chart(options, onpoint)]),
    );
    const { throughput, requests, ...rest } = this.charts;
    const nodes = [throughput, requests, this.bar, ...Object.values(rest)].map(({ node }) => node);
    const caption = "The last 3 minutes. Percentiles and hits in figures are of the last minute.";
    this.caption = el("p", { class: "caption" }, caption);
    find("engine").append(el("div", { class: "charts" }, ...nodes), this.caption, this.facts);
    document.addEventListener("visibilitychange", () => this.poll());
    this.poll();
  }

  async poll() {
    clearTimeout(this.timer);
    if (document.hidden || this.isPolling) return;
    this.isPolling = true;
    let wait_ms = POLL_MS;
    try {
      const after = this.samples.at(-1)?.time ?? 0;
      this.take(await (await call(`ui/live?after=${after}`)).json());
    } catch {
      this.onanswer(null);
      wait_ms = SLOW_POLL_MS;
    }
    this.isPolling = false;
    this.timer = setTimeout(() => this.poll(), wait_ms);
  }

  take(answer) {
    const { live } = answer;
    const named = (row) => Object.fromEntries(live.fields.map((name, i) => [name, row[i]]));
    const fresh = live.samples.map(named);
    this.samples = [...this.samples, ...fresh].slice(-KEPT);
    this.live = live;
    this.onanswer(answer);
    this.draw();
    this.showFacts(answer.facts);
  }

  draw() {
    const now = this.samples.at(-1)?.time;
    if (now === undefined) return;
    for (const chart of Object.values(this.charts)) chart.draw(this.samples, now);
    this.bar.show(this.live);
    if (this.pointed === null) this.showNow();
    else this.point(this.pointed);
  }

  showNow() {
    const { live, samples, charts } = this;
    const recent = samples.slice(-RECENT);
    const mean = (name) => recent.reduce((sum, sample) => sum + sample[name], 0) / recent.length;
    charts.throughput.show([mean("num_generation_tokens"), mean("num_prompt_tokens")]);
    charts.requests.show([live.num_running, live.num_waiting]);
    charts.first.show(live.summary.time_to_first_token ?? [null, null]);
    charts.between.show(live.summary.inter_token ?? [null, null]);
    charts.step.show(live.summary.step ?? [null, null]);
    charts.hits.show([live.summary.prefix_hit_rate]);
    charts.kv.show([live.num_used_blocks]);
    charts.preemptions.show([live.num_preemptions]);
  }

  // Every chart says what was at the second pointed at in one of them.
  point(age) {
    this.pointed = age;
    const now = this.samples.at(-1)?.time;
    const sample = age === null ? null : this.samples.find(({ time }) => time === now - age);
    for (const chart of Object.values(this.charts)) chart.point(sample, age);
    if (age === null && now !== undefined) this.showNow();
  }

  showFacts(facts) {
    const rows = [
      ["Model", facts.models[0]],
      ["Context", `${whole(facts.max_model_len)} tokens`],
      ["Device", `${facts.device}, ${facts.dtype}`],
      ...enginesOf(facts),
      ...ranksOf(facts.ranks),
      ["Block", `${facts.block_size} tokens`],
      ["Version", facts.version],
    ];
    if (this.facts.childElementCount) return;
    for (const [name, value] of rows) this.facts.append(el("dt", {}, name), el("dd", {}, value));
  }
}
