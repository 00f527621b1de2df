/* Keep the saved size of nodes: a dynamic combo box resets it when a workflow is loaded. Pictures need the room. */

import { app } from '../../scripts/app.js'

const LABELS = 72 // height of the labels of Compare Generators, which would take half of the node

app.registerExtension({
  name: 'stylegan_nada.node_sizes',
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith('StyleGANNADA_')) return
    const labels = node.widgets?.find((widget) => widget.name === 'labels')
    if (labels?.options) labels.options.getMaxHeight = () => LABELS
    const configured = node.onConfigure
    node.onConfigure = function (info, ...parts) {
      configured?.call(this, info, ...parts)
      const [width, height] = this.computeSize()
      this.setSize([Math.max(info.size?.[0] ?? 0, width), Math.max(info.size?.[1] ?? 0, height)])
    }
  }
})
