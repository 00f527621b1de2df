/* A button on the nodes that train: end the training after the current step and pass on what is there.
 * A subgraph that contains one of them gets the button, too, and shows its preview. */

import { app } from '../../scripts/app.js'
import { api } from '../../scripts/api.js'

const TRAINING = ['StyleGANNADA_AdaptGenerator', 'StyleGANNADA_AdaptToPairs']
const BUTTON = 'stop_and_keep'

const TEXTS = {
  en: ['Stop and keep', 'The training stops after this step. Its result is passed on.', 'This node is not training.'],
  ru: ['Остановить и оставить', 'Обучение остановится после этого шага. Результат передаётся дальше.', 'Этот узел сейчас не обучает.'],
  zh: ['停止并保留', '训练将在当前步骤之后停止，并输出已有结果。', '该节点当前没有在训练。']
}

function texts() {
  const locale = app.ui?.settings?.getSettingValue?.('Comfy.Locale') ?? 'en'
  return TEXTS[String(locale).split('-')[0]] ?? TEXTS.en
}

/* The ids of a node as the server knows them: "3", or "7:3" inside subgraph node 7. */
function executionIds(node, graph = app.rootGraph ?? app.graph, path = '') {
  return graph.nodes.flatMap((other) => {
    if (other === node) return [`${path}${other.id}`]
    return other.isSubgraphNode?.() ? executionIds(node, other.subgraph, `${path}${other.id}:`) : []
  })
}

async function stop(node) {
  const [summary, stopping, idle] = texts()
  let training = false
  for (const id of executionIds(node)) {
    const response = await api.fetchApi('/stylegan_nada/stop', {
      method: 'POST',
      headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify({ node_id: id })
    })
    training ||= response.ok && (await response.json()).stopping
  }
  app.extensionManager?.toast?.add({ severity: 'info', summary, detail: training ? stopping : idle, life: 5000 })
}

/* Neither workflows nor prompts contain the button. */
function addButton(node, trained) {
  const button = node.addWidget('button', BUTTON, null, () => void stop(trained), { serialize: false })
  button.label = texts()[0]
  button.serialize = false
}

/* Draw the preview of a training below the widgets of its subgraph: the classic renderer does not do so by itself. */
function addPreview(node, trained) {
  const drawn = node.onDrawForeground
  node.onDrawForeground = function (context, ...parts) {
    drawn?.call(this, context, ...parts)
    trained.onDrawBackground?.(context) // takes new pictures over
    const picture = trained.imgs?.[0]
    const top = this.computeSize()[1]
    const [wide, high] = [this.size[0] - 20, this.size[1] - top - 10]
    if (this.flags.collapsed || !picture?.naturalWidth || high < 20) return
    const scale = Math.min(wide / picture.naturalWidth, high / picture.naturalHeight)
    const [w, h] = [picture.naturalWidth * scale, picture.naturalHeight * scale]
    context.drawImage(picture, (this.size[0] - w) / 2, top + (high - h) / 2, w, h)
  }
}

const decorated = new WeakSet()

function decorateSubgraph(node) {
  const trainings = node.subgraph.nodes.filter((inner) => TRAINING.includes(inner.comfyClass))
  if (trainings.length !== 1 || decorated.has(node)) return
  decorated.add(node)
  if (node._extraWidgets) addButton(node, trainings[0]) // frontend 1.42 shows promoted widgets only, the button as well
  addPreview(node, trainings[0])
}

app.registerExtension({
  name: 'stylegan_nada.stop_and_keep',
  loadedGraphNode(node) {
    if (node.isSubgraphNode?.()) decorateSubgraph(node)
  },
  nodeCreated(node) {
    if (node.isSubgraphNode?.()) decorateSubgraph(node) // from a blueprint
    if (TRAINING.includes(node.comfyClass)) addButton(node, node)
  }
})
