// The hook of typescript.mjs. Types are not checked here: `npm run check` does that.

import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { resolve } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

export async function load(url, context, next) {
  if (!url.startsWith("file:") || !url.endsWith(".ts")) return next(url, context);
  const { transform } = await import(pathToFileURL(createRequire(resolve("package.json")).resolve("esbuild")));
  const sourcefile = fileURLToPath(url);
  const { code } = await transform(await readFile(sourcefile, "utf8"), { loader: "ts", format: "esm", target: "es2023", sourcefile, sourcemap: "inline" });
  return { format: "module", source: code, shortCircuit: true };
}
