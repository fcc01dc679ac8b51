#!/usr/bin/env node
// Builds a component from a handler: bundles the source and this SDK with esbuild, and puts the bundle into QuickJS.
//
//   npx millrace-build --wit build/wit --world module --kind processor --imports log,state,config \
//     --source handler.js --output build/greeter.wasm

import { mkdir, rm, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname, relative, resolve } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { parseArgs } from "node:util";

import { renamed, restored } from "./lib/wasi-names.mjs";

const EXPORTS = { processor: "messageProcessor", partitioner: "partitioner", "error-handler": "errorHandler", http: "incomingHandler" };
const INTERFACES = ["log", "state", "config", "secrets", "metrics", "producer", "views"];
/** What a component that answers HTTP has beside its own imports: WASI's types, which its export refers to. */
const HTTP = { http: "wasi:http/types" };
const SDK = dirname(fileURLToPath(import.meta.url));

const { values: options } = parseArgs({
  options: {
    wit: { type: "string" },
    world: { type: "string", default: "module" },
    kind: { type: "string", default: "processor" },
    imports: { type: "string", default: "log,state,config" },
    source: { type: "string", default: "handler.js" },
    output: { type: "string" },
  },
});

try {
  await build();
} catch (error) {
  // esbuild has already shown its own errors, with the lines of the source.
  if (!Array.isArray(error.errors)) console.error(`error: ${error.message}`);
  process.exitCode = 1;
}

async function build() {
  const imports = options.imports.split(",").map((name) => name.trim()).filter(Boolean);
  check(imports);
  const esbuild = await tool("esbuild");
  const { componentize } = await tool("componentize-qjs");
  const { outputFiles } = await esbuild.build({
    stdin: { contents: entry(imports), resolveDir: process.cwd(), sourcefile: "the component's entry" },
    bundle: true,
    format: "esm",
    platform: "neutral",
    target: "es2023",
    mainFields: ["module", "main"],
    conditions: ["import"],
    external: ["millrace:*", "wasi:*"],
    charset: "utf8",
    // The name of an error and of its functions are what a trap leaves behind.
    keepNames: false,
    minifySyntax: true,
    write: false,
    logLevel: "warning",
  });
  const source = outputFiles[0].text;
  await mkdir(dirname(resolve(options.output)), { recursive: true });
  await writeFile(`${options.output}.js`, source);
  const isHttp = options.kind === "http";
  const wit = isHttp ? await renamed(resolve(options.wit)) : resolve(options.wit);
  let made;
  try {
    made = await componentize({
      witPath: wit,
      jsSource: source,
      world: options.world,
      // The host has clocks and random numbers, an empty file system and closed sockets; stubs would trap instead.
      stubWasi: false,
      sync: true,
    });
  } finally {
    if (isHttp) await rm(wit, { recursive: true });
  }
  const component = isHttp ? restored(made.component) : made.component;
  await writeFile(options.output, component);
  console.log(`${options.output}: ${component.length} bytes`);
}

function check(imports) {
  for (const name of ["wit", "output"]) {
    if (options[name] === undefined) throw new Error(`--${name} is missing`);
  }
  if (EXPORTS[options.kind] === undefined) {
    throw new Error(`there is no kind ${options.kind} for JavaScript: use ${Object.keys(EXPORTS).join(", ")}`);
  }
  for (const name of imports) {
    if (!INTERFACES.includes(name)) throw new Error(`there is no import ${name}: use ${INTERFACES.join(", ")}`);
  }
}

/** A package of the project, not of the SDK's folder. */
async function tool(name) {
  try {
    const path = createRequire(resolve("package.json")).resolve(name);
    const found = await import(pathToFileURL(path));
    return found.default ?? found;
  } catch (error) {
    if (error.code === "MODULE_NOT_FOUND") throw new Error(`${name} is not installed: run \`npm install\` in the project`);
    throw error;
  }
}

/** What the component begins with: globals, then the handler, then its export with exactly the imports that its world has. */
function entry(imports) {
  const here = (path) => JSON.stringify(relativeTo(path));
  const from = Object.fromEntries(imports.map((name) => [name, `millrace:broker/${name}`]));
  if (options.kind === "http") Object.assign(from, HTTP);
  const names = Object.keys(from);
  return [
    `import ${here(resolve(SDK, "lib/globals.js"))};`,
    ...names.map((name) => `import * as ${name}_ from "${from[name]}";`),
    `import handler from ${here(resolve(options.source))};`,
    `import { bind } from ${here(resolve(SDK, "lib/component.js"))};`,
    `export const ${EXPORTS[options.kind]} = bind(handler, ${JSON.stringify(options.kind)}, {`,
    ...names.map((name) => `  ${name}: ${name}_,`),
    "});",
  ].join("\n");
}

function relativeTo(path) {
  const found = relative(process.cwd(), path).replaceAll("\\", "/");
  return found.startsWith(".") ? found : `./${found}`;
}
