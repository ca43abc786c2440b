// The type of the web page's models, written anew from flashinfer-bench 0.1.2 (web/apps/web/lib/schemas/model.ts).

export interface Module {
  count: number
  parent?: string
  type: "block" | "layer"
  definitions?: string[]
}

export interface Model {
  id: string
  name: string
  description?: string
  modules: Record<string, Module>
}
