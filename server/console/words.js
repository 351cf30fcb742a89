// The languages of the console: English is the key, Chinese the other. What the server says of an
// error stays as the server says it.

const NAME = "lineside-language";
const ZH = {
  "Now": "现况", "Try": "试验", "Look": "标注", "Journal": "日志", "Models": "模型", "Set up": "设置",
  "Language": "语言", "API": "API", "Sign out": "退出", "ready": "就绪",
  "asking the server…": "正在询问服务器…", "the server can't be reached": "无法连接服务器",
  "This server asks for a key": "此服务器需要密钥", "Key": "密钥", "Sign in": "登录",
  "Sent once, to this server only. You stay signed in for at most twelve hours, and for one hour after the page was closed.":
    "只向此服务器发送一次。最多保持登录十二小时；关闭页面一小时后自动退出。",
  "the server refuses this key": "服务器拒绝此密钥",
  "Frame": "图像", "Model": "模型", "Answer": "结果", "Drop an image here, paste one, or": "将图像拖到此处、粘贴，或",
  "choose a file": "选择文件", "Choose an image file": "选择图像文件", "Sample frames": "示例图像",
  "Nothing recognised yet. Drop an image, or click a sample frame.": "尚无结果。拖入一张图像，或点击示例图像。",
  "Answer as JSON": "JSON 结果", "decided by": "判定依据", "familiar": "是否熟悉",
  "anomaly score": "异常分数", "objects": "目标数", "round trip": "往返", "decode": "解码",
  "preprocess": "预处理", "wait": "等待", "inference": "推理", "total": "总计", "version": "版本",
  "nothing that the model knows was found in the frame": "图像中没有模型认识的内容",
  "no label is probable enough to be named": "没有足够可信的标签",
  "pass": "合格", "fail": "不合格", "unsure": "不确定", "none": "无判定", "refused": "被拒绝", "error": "错误",
  "parts a minute": "每分钟件数", "temperature": "温度", "Last frames": "最近的图像", "Outputs": "输出",
  "Cameras": "相机", "connected": "已连接", "not connected": "未连接", "waiting": "等待中",
  "without a camera": "无相机名", "no picture yet": "尚无图像", "ago": "前",
  "No frame yet. Send one from a camera, or try one in the tab Try.": "尚无图像。请从相机发送，或在“试验”页中试一张。",
  "No data from the server since": "服务器无数据，自", "lost": "已断开", "connecting": "正在连接", "ended": "已结束",
  "Not ready": "未就绪", "Wall": "大屏", "All": "全部", "Reason": "原因", "Labelled": "已标注",
  "yes": "是", "no": "否", "Label": "标签", "Camera": "相机", "Part": "工件", "Verdict": "判定", "Time": "时间",
  "Probability": "概率", "Milliseconds": "毫秒", "More": "更多", "Refresh": "刷新", "Undo": "撤销",
  "Remove the label": "取消标签", "selected": "已选",
  "No samples are kept on this server: set samples = \"on\", and start it again.": "此服务器不保存样本：设置 samples = \"on\" 后重新启动。",
  "No frame waits here. Frames that the model was unsure about will.": "没有待看的图像。模型不确定的图像会出现在这里。",
  "Keys: arrows move, space selects, a number labels, u undoes.": "按键：方向键移动，空格选择，数字标注，u 撤销。",
  "kept": "已保存", "labelled": "已标注", "Train on them": "用它们训练",
  "Nothing in the journal for these filters.": "日志中没有符合条件的记录。",
  "The journal is switched off on this server.": "此服务器未启用日志。", "Save as CSV": "保存为 CSV",
  "Verdicts by hour": "每小时判定", "Since": "自", "Show": "显示", "serves": "正在服务", "refused versions": "被拒绝的版本",
  "Activate": "启用", "Roll back": "回退", "Load the newest": "加载最新", "Send a version": "上传版本",
  "Cancel": "取消", "Do it": "确定", "policy": "判定规则", "quantisation": "量化", "accuracy": "准确率",
  "not loaded; it is with its first frame": "未加载；首张图像时加载", "Settings in force": "生效的设置",
  "Value": "值", "From": "来源", "What": "说明", "default": "默认值", "environment": "环境变量", "file or flag": "文件或参数",
  "Keys": "密钥", "Find a setting": "查找设置", "Add a camera": "添加相机", "Name": "名称", "Kind": "类型",
  "Address or path": "地址或路径", "Add": "添加", "Delete": "删除", "Trigger": "触发",
  "No camera is read by this server. Cameras may also post their frames.": "此服务器未读取相机。相机也可以自行发送图像。",
  "No output is set. Verdicts are only in the answers.": "未设置输出。判定只在应答中。",
  "Settings are changed in the settings file, in the environment or by flags; then start the server again.": "设置在设置文件、环境变量或参数中修改，然后重新启动服务器。",
  "There is no key, so only this machine may use the server. Make the first one with all rights, for yourself.":
    "尚无密钥，因此只有本机可以使用服务器。请先为自己创建一个拥有全部权限的密钥。",
  "The setting auth is off: everybody is let in, and keys are made on the device only.":
    "设置 auth 为 off：任何人都可访问，密钥只能在设备上创建。",
  "Rights": "权限", "Last used": "最近使用", "Ends": "到期", "Revoke": "撤销", "Make a key": "创建密钥", "New key": "新密钥",
  "recognize": "识别", "admin": "管理", "metrics": "指标", "you": "当前", "expired": "已到期",
  "not since the start": "启动后未使用", "copy this key now, it is never shown again.": "请立即复制此密钥，之后不再显示。",
  "Copy": "复制", "Done": "完成", "On the device": "在设备上", "A key needs a right.": "密钥至少需要一项权限。",
  "Revoke the key": "撤销密钥", "Whoever uses it is refused from now on.": "使用它的人将立即被拒绝。",
  "It is your own: you are signed out.": "这是您自己的密钥：您将退出登录。",
  "This is the first key. From now on everybody needs one, cameras too.": "这是第一个密钥。从现在起，所有人（包括相机）都需要密钥。",
};

function stored() {
  try {
    return localStorage.getItem(NAME);
  } catch {
    return null; // A browser that may store nothing for this site.
  }
}

export function language() {
  return stored() ?? (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");
}

export function setLanguage(name) {
  try {
    localStorage.setItem(NAME, name);
  } catch {
    // Then the browser's language counts.
  }
}

const chinese = language() === "zh";

export function t(text) {
  return (chinese && ZH[text]) || text;
}

// Translates the elements with the attribute data-t: their text, or the attributes that it names.
export function translate(root) {
  document.documentElement.lang = chinese ? "zh" : "en";
  for (const each of root.querySelectorAll("[data-t]")) {
    for (const name of each.dataset.t ? each.dataset.t.split(" ") : [""]) {
      if (name) each.setAttribute(name, t(each.getAttribute(name)));
      else each.textContent = t(each.textContent.trim());
    }
  }
}
