/* A button on the nodes that train: end the training after the current step and pass on what is there. */

import { app } from '../../scripts/app.js'
import { api } from '../../scripts/api.js'

const TRAINING = ['StyleGANNADA_AdaptGenerator', 'StyleGANNADA_AdaptToPairs']

const TEXTS = {
  en: ['Stop and keep', 'The training stops after this step. Its result is passed on.', 'This node is not training.'],
  ru: ['Остановить и оставить', 'Обучение остановится после этого шага. Результат передаётся дальше.', 'Этот узел сейчас не обучает.'],
  zh: ['停止并保留', '训练将在当前步骤之后停止，并输出已有结果。', '该节点当前没有在训练。']
}

function texts() {
  const locale = app.ui?.settings?.getSettingValue?.('Comfy.Locale') ?? 'en'
  return TEXTS[String(locale).split('-')[0]] ?? TEXTS.en
}

async function stop(node) {
  const [summary, stopping, idle] = texts()
  const response = await api.fetchApi('/stylegan_nada/stop', {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify({ node_id: String(node.id) })
  })
  const training = response.ok && (await response.json()).stopping
  app.extensionManager?.toast?.add({ severity: 'info', summary, detail: training ? stopping : idle, life: 5000 })
}

app.registerExtension({
  name: 'stylegan_nada.stop_and_keep',
  nodeCreated(node) {
    if (!TRAINING.includes(node.comfyClass)) return
    const label = texts()[0]
    // Neither workflows nor prompts contain the button.
    const button = node.addWidget('button', 'stop_and_keep', null, () => void stop(node), { serialize: false })
    button.label = label
    button.serialize = false
    const configured = node.onConfigure
    node.onConfigure = function (...parts) {
      configured?.apply(this, parts)
      const [width, height] = this.computeSize() // a workflow saved without the button has a lower node
      this.setSize([Math.max(this.size[0], width), Math.max(this.size[1], height)])
    }
  }
})
